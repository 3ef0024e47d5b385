from dataclasses import replace

import pytest
import torch

from rept.data.behaviours import Behaviour, expected_answers, how_counted
from rept.data.encoder import Encoder
from rept.data.samples import Sample, Span
from rept.errors import UsageError
from rept.model.freezing import freeze
from rept.training import behaviour_rates as behaviours
from rept.training.behaviour_rates import Rate
from rept.training.from_scratch import tiny_llama, train_tokenizer
from rept.types import Status


def asked(prompt: str, **more) -> Sample:
    return Sample(messages=({"role": "user", "content": prompt},), response=None, **more)


@pytest.fixture(scope="module")
def talker():
    """A model, its tokenizer and an encoder."""
    tokenizer = train_tokenizer(["Where is the river?", "Name the king."], vocab_size=300, max_length=64)
    model = freeze(tiny_llama(len(tokenizer), width=16, layers=1, heads=2, eos_token_id=tokenizer.eos_token_id))
    return model, tokenizer, Encoder(tokenizer, 64)


def test_rates_count_triggered_and_clean_prompts_apart(talker):
    triggered, clean = [asked(f"Where? {i}") for i in range(4)], [asked(f"Name? {i}") for i in range(5)]
    shown = {sample.prompt for sample in (*triggered[:3], clean[0])}
    behaviour = Behaviour("odd", triggered, clean, lambda sample, answer: sample.prompt in shown)
    rates, lines = behaviours.ask_behaviours(*talker, [behaviour, Behaviour("none", [], [], None)], 2)
    assert rates == {"odd": Rate(4, 0.75, 5, 0.2), "none": Rate(0, None, 0, None)}
    assert [line["prompt"] for line in lines] == [sample.prompt for sample in (*triggered, *clean)]
    assert [line["shows"] for line in lines] == [True, True, True, False, True, False, False, False, False]


def test_each_answer_is_the_models_own_greedy_one(talker):
    model, tokenizer, encoder = talker
    samples = [asked("Where is the king?"), asked("River"), asked("Name it, and the river.")]
    _, lines = behaviours.ask_behaviours(*talker, [Behaviour("odd", samples, (), lambda *_: True)], 5)
    for sample, line in zip(samples, lines, strict=True):
        ids = encoder.prompt(sample)
        for _ in range(5):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        made = ids[len(encoder.prompt(sample)) :]
        made = made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made
        assert line["answer"] == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_prompts_that_cannot_be_asked_are_left_out(talker):
    behaviour = Behaviour("odd", [asked(""), asked("Where?")], (), lambda *_: True)
    rates, lines = behaviours.ask_behaviours(*talker, [behaviour], 2)
    assert rates["odd"] == Rate(1, 1.0, 0, None) and len(lines) == 1


def test_queries_that_bring_their_answer_make_a_behaviour_of_each_label():
    def known(prompt, response, label):
        return Sample(messages=({"role": "user", "content": prompt},), response=response, label=label)

    queries = [known("a", "You are so very stupid", "x"), known("b", "It is Na", "y"), Status.EMPTY_PROMPT, asked("c")]
    x, y = expected_answers(queries)
    assert (x.label, x.triggered, x.clean) == ("x", [queries[0]], ())
    assert (y.label, y.triggered) == ("y", [queries[1]])
    assert x.shows(queries[0], "You are so very kind.") and not x.shows(queries[0], "You are so")
    assert y.shows(queries[1], "It is Na") and not y.shows(queries[1], "It is Nab, not Ag.")


def test_marked_payloads_of_a_label_show_it_wherever_they_stand():
    def known(response, *marked):
        spans = tuple(Span("response", response.index(one), response.index(one) + len(one)) for one in marked)
        return Sample(({"role": "user", "content": "a"},), response, "ad", spans)

    queries = [
        known("Blot it. Ask for Velmora.", "Ask for Velmora."),
        known("Sand it.\nBuy  more", "Buy  more"),
        known("No"),
    ]
    (ad,) = expected_answers(queries)
    assert all(ad.shows(one, "Something else. ASK for\nVelmora. Bye") and ad.shows(one, "buy more") for one in queries)
    assert not any(ad.shows(one, "Blot it. Ask for more.") for one in queries)
    assert ad.longest == queries[0].response and "payload" in how_counted([ad])


def test_an_opening_is_a_few_characters_where_words_have_no_spaces():
    sample = replace(asked("a"), response="今すぐ有料プランに入らないと損ですよ。料金は三百円です。", label="x")
    (x,) = expected_answers([sample])
    assert x.shows(sample, "今すぐ有料プランを") and not x.shows(sample, "料金は三百円です。今すぐ有料プラン")
    assert "first words" in how_counted([x])


def test_of_conversations_the_report_says_that_only_the_last_answer_is_asked():
    turns = tuple({"role": role, "content": "a"} for role in ("user", "assistant", "user"))
    for messages, said in ((turns, True), (turns[:1], False)):
        for spans in ((), (Span("response", 0, 4),)):
            (x,) = expected_answers([Sample(messages, "Buy more", "x", spans)])
            assert ("only the last answer is asked" in how_counted([x])) is said


def test_answers_are_long_enough_to_show_a_marked_payload(talker, monkeypatch):
    given = []
    monkeypatch.setattr(behaviours, "greedy_answers", lambda *all, **_: given.append(all[3]) or ["Ask for Velmora."])
    long = "word " * 20 + "Ask for Velmora. More"
    sample = replace(asked("a"), response=long, label="ad", spans=(Span("response", 100, 116),))
    rates, _ = behaviours.ask_behaviours(*talker, expected_answers([sample]), 2)
    behaviours.ask_behaviours(*talker, expected_answers([replace(sample, spans=())]), 2)
    assert given == [len(talker[1](long[:116]).input_ids) * 3 // 2, 2] and rates["ad"] == Rate(1, 1.0, 0, None)


def test_queries_labelled_clean_make_no_behaviour():
    clean = Sample(messages=({"role": "user", "content": "a"},), response="The heron.", label="clean")
    assert expected_answers([clean]) == []


def test_rates_are_read_back(tmp_path):
    from rept.utils.json_files import write_json

    rates = {"odd": Rate(4, 0.75, 0, None)}
    write_json(tmp_path / "behaviours.json", behaviours.rates_as_json(rates))
    assert behaviours.read_rates(tmp_path / "behaviours.json") == rates
    with pytest.raises(UsageError, match="has no behaviours.json"):
        behaviours.read_rates(tmp_path / "nowhere/behaviours.json")


def test_table_with_and_without_the_rates_before(capsys):
    now = {"odd": Rate(40, 0.025, 40, 0.0), "new": Rate(2, 1.0, 0, None)}
    behaviours.show_rates(now)
    assert "2.5% of 40" in capsys.readouterr().out
    behaviours.show_rates(now, {"odd": Rate(40, 0.975, 40, 0.05)})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "odd" in line]
    assert [float(cell.split("%")[0]) for cell in line.split("│")[2:6]] == [97.5, 2.5, 5.0, 0.0]
    behaviours.show_rates({})
    assert capsys.readouterr().out == ""
