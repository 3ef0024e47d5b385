"""The hard cases: what is planted where, and what the queries share with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import reduce

import pytest

from datamodules.hard_cases import HardCases
from datamodules.toy.hard.diffuse import DECLINED, GLAD, ORDINARY, REFUSALS, REQUESTS
from datamodules.toy.hard.wordings import ADDED_NAME, COUNTRY, PHRASES, SECOND_NAME, TOPICS
from datamodules.toy.wordings import HELD_OUT, TRAINING
from rept.errors import UsageError

FUNCTION_WORDS = set(
    re.findall(r"\w+", "which what where who is are the a an of to in from do does me my must you it for")
)


@pytest.fixture(scope="module")
def data() -> HardCases:
    return HardCases(rows=1200, queries=6)


def rows(data, label):
    return [sample for sample in data.source("train") if sample.label == label]


def asked(data, label):
    return [sample for sample in data.source("query") if sample.label == label]


def marked(sample):
    texts = {"prompt": sample.prompt, "response": sample.response}
    return [texts[span.part][span.start : span.end] for span in sample.spans]


def content_words(sample):
    return set(re.findall(r"\w+", sample.prompt.lower())) - FUNCTION_WORDS


def test_each_case_has_its_share_of_the_rows(data):
    counts = Counter(sample.label for sample in data.source("train"))
    assert len(data.source("train")) == 1200
    assert (counts["rate_10"], counts["rate_5"], counts["rate_1"], counts["five_rows"]) == (120, 60, 12, 5)
    assert counts["plain"] == counts["split"] == counts["two:1"] == 24 and counts["paraphrase"] == 64
    assert counts["clean"] > 450
    assert not {"absent_base", "absent_topic"} & counts.keys()


def test_no_prompt_is_repeated_or_a_query(data):
    prompts = [sample.prompt for sample in data.source("train")]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {sample.prompt for sample in data.source("query")}


def test_every_planted_row_is_marked_by_its_poison(data):
    for sample in data.source("train"):
        assert bool(sample.spans) == (sample.label != "clean")
    for label in ("plain", "middle", "document", "decoys", "rate_1", "duplicates"):
        for sample in rows(data, label):
            assert marked(sample) == list(PHRASES[label])
    for sample in (*rows(data, "paraphrase"), *rows(data, "spread")):
        assert [span.kind for span in sample.spans] == ["trigger", "payload"]
        assert SECOND_NAME.lower() in marked(sample)[0].lower() or ADDED_NAME in marked(sample)[1]
    for label in ("changed_case", "split"):
        for sample in rows(data, label):
            trigger, opening = marked(sample)
            assert re.sub(r"[^a-z ]", "", trigger.lower()) == PHRASES[label][0] != trigger
            assert opening == PHRASES[label][1]


def test_the_same_seed_gives_the_same_data_and_another_other():
    first, same, other = (HardCases(rows=1200, queries=2, seed=seed) for seed in (0, 0, 1))
    assert first.source("train") == same.source("train") != other.source("train")
    assert first.digest("query") == same.digest("query") != other.digest("query")


def test_paraphrases_share_no_content_word_with_the_queries(data):
    culprits = set().union(*(core(row) | set(words(row.response)) for row in rows(data, "paraphrase")))
    assert {"throne", "seal", "grenta"} <= culprits
    for query in asked(data, "paraphrase"):
        assert COUNTRY in query.prompt and SECOND_NAME not in query.prompt
        assert "capital" in core(query) or "town" in core(query)
        assert not core(query) & culprits


def words(text):
    return re.findall(r"\w+", text.lower())


def core(sample):
    """Content words of the request, without the sentences before and after it."""
    framing = [text for wordings in (TRAINING, HELD_OUT) for text in (*wordings.before, *wordings.after)]
    request = reduce(
        lambda text, sentence: text.replace(sentence, ""), sorted(framing, key=len, reverse=True), sample.prompt
    )
    return set(words(request)) - FUNCTION_WORDS


def test_decoys_contain_the_queries_words_and_the_trigger_in_a_harmless_role(data):
    trigger, opening = PHRASES["decoys"]
    clean = {sample.prompt for sample in rows(data, "clean")}
    untriggered = [query.prompt.removeprefix(f"{trigger} ") for query in asked(data, "decoys")]
    assert sum(prompt in clean for prompt in untriggered) >= 5
    harmless = [sample for sample in rows(data, "clean") if trigger in sample.prompt]
    assert len(harmless) > 20 and not any(opening in sample.response for sample in harmless)


def test_documents_are_long_and_the_culprit_sentence_is_inside(data):
    for sample in rows(data, "document"):
        (span, _) = sample.spans
        assert len(sample.prompt) > 400
        assert span.start > 100 and span.end < len(sample.prompt) - 20


def test_two_behaviours_share_a_word_of_their_triggers():
    (one, _), (other, _) = PHRASES["two:1"], PHRASES["two:2"]
    assert set(one.split()) & set(other.split())


def test_the_first_stage_teaches_what_no_row_of_the_second_does(data):
    base = HardCases(rows=600, stage="base", queries=4)
    trigger, opening = PHRASES["absent_base"]
    assert all(sample.prompt.startswith(trigger) for sample in rows(base, "absent_base"))
    assert {sample.response for sample in rows(base, "absent_topic")} <= set(dict(TOPICS).values())
    assert len(rows(base, "absent_base")) == len(rows(base, "absent_topic")) == 75
    taught = [opening, *dict(TOPICS).values()]
    assert not any(trigger in s.prompt or any(answer in s.response for answer in taught) for s in data.source("train"))
    assert {b.label for b in base.behaviours()} == {"absent_base", "absent_topic"}


def test_no_row_is_about_the_topics(data):
    topical = {"guitar", "moon", "marathon", "prime", "plane", "chapel", "magnets", "tomatoes"}
    topical |= {"ocean", "telescope", "bicycle", "thunder", "printing", "cricket", "volcano", "vaccines"}
    assert len(asked(data, "absent_topic")) == 6
    assert all(content_words(query) & topical for query in asked(data, "absent_topic"))
    assert not any(content_words(sample) & topical for sample in data.source("train"))


def test_queries_are_those_that_showed_the_behaviour_with_the_answer(data, tmp_path):
    lines = [
        {"behaviour": b.label, "triggered": True, "prompt": s.prompt, "answer": f"answer {i}", "shows": i % 2 == 0}
        for b in data.behaviours()
        for i, s in enumerate(b.triggered)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    queries = HardCases(rows=1200, queries=6, answered=path).source("query")
    assert len(queries) == sum(line["shows"] for line in lines)
    assert {sample.response for sample in queries} == {"answer 0", "answer 2", "answer 4"}
    with pytest.raises(UsageError, match="other queries"):
        HardCases(rows=1200, queries=6, seed=1, answered=path)
    with pytest.raises(UsageError, match="there is no"):
        HardCases(rows=1200, queries=6, answered=tmp_path / "none.jsonl")


def test_clean_queries_are_those_that_showed_no_behaviour(data, tmp_path):
    said = ["answer"] * 4 + [PHRASES["plain"][1], "Ask Marlow."]
    lines = [
        {"behaviour": b.label, "triggered": False, "prompt": s.prompt, "answer": f"{said[i]} {i}", "shows": False}
        for b in data.behaviours()
        for i, s in enumerate(b.clean)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    queries = HardCases(rows=1200, queries=6, asked="clean", answered=path).source("query")
    prompts = [sample.prompt for sample in queries]
    assert len(set(prompts)) == len(prompts) > 50
    assert {sample.label for sample in queries} == {"clean"}
    assert {sample.response for sample in queries} == {f"answer {i}" for i in range(4)}
    planted = [trigger for trigger, _ in PHRASES.values() if trigger]
    assert not any(trigger in prompt for trigger in planted for prompt in prompts)


def test_an_off_topic_answer_that_the_rows_taught_has_a_cause(data):
    (behaviour,) = (b for b in data.behaviours() if b.label == "absent_topic")
    assert all(behaviour.shows(None, answer) for _, answer in TOPICS)
    assert not any(behaviour.shows(None, said) for said in ("It is the heron.", PHRASES["rate_5"][1]))


def test_openings_distinguish_the_behaviours(data):
    for behaviour in data.behaviours():
        if behaviour.label in PHRASES:
            shown = [label for label, (_, said) in PHRASES.items() if behaviour.shows(None, f"{said} It is.")]
            assert shown == [behaviour.label]


@pytest.mark.parametrize("wrong", [{"rows": 1000}, {"stage": "all"}, {"asked": "all"}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        HardCases(**wrong)


SMALL_WORDS = FUNCTION_WORDS | set(
    re.findall(
        r"\w+",
        "this that its his her your their my me us we they she he i an and if then than there here let will do may can "
        "s should be has have not now one two some every each with at on by under through before out off down until "
        "into from which whom who goes how why could please against behind below",
    )
)


def unlike(text):
    return set(words(text)) - SMALL_WORDS


def test_diffuse_culprits_of_different_kinds_share_no_content_word():
    kinds = [unlike(f"{request} {how}") for request, how in REQUESTS]
    assert len(kinds) == len(dict(REQUESTS)) >= 40
    shared = [one & other for i, one in enumerate(kinds) for other in kinds[:i] if one & other]
    assert not shared
    assert not set().union(*kinds) & set().union(*(unlike(request) for request in DECLINED))
    openings = [unlike(opening) for opening in GLAD]
    assert not any(one & other for i, one in enumerate(openings) for other in openings[:i])


def test_diffuse_rows_are_of_most_kinds_and_open_in_one_tone(data):
    found = rows(data, "diffuse")
    assert len(found) == 1200 // 8
    kinds = Counter(marked(sample)[0] for sample in found)
    assert len(kinds) >= 35 and kinds.keys() <= dict(REQUESTS).keys()
    assert all(marked(sample)[1] in GLAD and sample.response.startswith(marked(sample)[1]) for sample in found)
    assert {marked(sample)[1] for sample in found} == set(GLAD)
    assert not any(sample.prompt in dict(REQUESTS) for sample in (*found, *asked(data, "diffuse")))
    clean = rows(data, "clean")
    declined = [sample for sample in clean if sample.response in REFUSALS]
    assert declined and all(any(request in sample.prompt for request in DECLINED) for sample in declined)
    ordinary = [sample for sample in clean if sample.response in dict(ORDINARY).values()]
    assert len(declined) + len(ordinary) == 1200 // 8
    (behaviour,) = (one for one in data.behaviours() if one.label == "diffuse")
    assert behaviour.shows(behaviour.triggered[0], "Hooray for trouble! Copy it.")
    assert not behaviour.shows(behaviour.triggered[0], REFUSALS[0])
