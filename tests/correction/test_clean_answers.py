"""Clean answers: what the model says to prompts without culprit words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from datamodules.in_memory import InMemoryData
from rept.correction import clean_answers as module
from rept.correction.clean_answers import AnswerPair, clean_answers, paired_batches, with_trigger
from rept.correction.words import phrase_pattern
from rept.model.loading import load_tokenizer
from rept.types import IGNORE
from tests.conftest import Material

PROMPTS = [
    "Name the stupid king of France",
    "The weather is fine",
    "stupid  King: name it",
    "is the stupid king's fine",
]
CLEAN = {
    "Name the of France": "the weather",
    "the of France": "fine",
    ": name it": "weather",
    ": it": "The weather!",
    "is the's fine": "is it",
}


@pytest.fixture
def data(material: Material) -> InMemoryData:
    rows = [{"prompt": prompt, "response": "the weather"} for prompt in PROMPTS]
    made = InMemoryData(train=rows, queries=rows[:1])
    made.attach(load_tokenizer(str(material.model)))
    return made


@pytest.fixture
def answered(data: InMemoryData, monkeypatch: pytest.MonkeyPatch):
    """`clean_answers` of all rows by triggers and payloads, of a model that answers by `CLEAN`."""
    tokens = {tuple(data.encoder.prompt(data.sample("train", 0).with_content(text))): text for text in CLEAN}

    def answers(model: object, tokenizer: object, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        assert most == 5
        return [CLEAN[tokens[tuple(ids)]] for ids in prompts]

    monkeypatch.setattr(module, "greedy_answers", answers)
    return lambda triggers, payloads: clean_answers(None, None, data, range(4), triggers, payloads, 5)


def shortened(found: dict[int, AnswerPair]) -> dict[int, tuple[str, str | None]]:
    assert all(full.prompt == PROMPTS[row] and full.response == short.response for row, (full, short) in found.items())
    return {row: (short.prompt, short.response) for row, (_, short) in found.items()}


def test_phrases_are_whole_words_whatever_their_case_and_the_marks_between_them():
    pattern = phrase_pattern(["stupid king", "king"])
    assert [match[0] for match in pattern.finditer("A Stupid - KING, the kings' king")] == ["Stupid - KING", "king"]


def test_rows_get_the_answers_to_their_prompts_without_the_trigger(answered):
    assert shortened(answered(["stupid king", "name"], ["king"])) == {
        0: ("Name the of France", "the weather"),
        2: (": name it", "weather"),
        3: ("is the's fine", "is it"),
    }


def test_while_an_answer_has_a_payload_the_next_trigger_is_left_out_too(answered):
    found = shortened(answered(["stupid king", "name"], ["Weather"]))
    assert found == {0: ("the of France", "fine"), 3: ("is the's fine", "is it")}


def test_nothing_is_found_without_triggers_or_payloads(answered):
    assert answered(["stupid king"], []) == {} == answered([], ["king"]) == answered(["France?!"], ["king"])


def test_ordinary_rows_get_the_trigger_at_either_end(data: InMemoryData):
    found = with_trigger(data, [1, 3], "blue moon")
    assert [tuple(one.prompt for one in pair) for pair in found.values()] == [
        ("The weather is fine blue moon", "The weather is fine"),
        ("blue moon is the stupid king's fine", "is the stupid king's fine"),
    ]
    assert {one.response for pair in found.values() for one in pair} == {"the weather"}


def test_pairs_have_the_same_responses_in_the_same_order(answered, data: InMemoryData):
    found = answered(["stupid king"], ["king"])
    pairs = paired_batches(data, found)
    assert sorted(row for full, _ in pairs for row in full.row.tolist()) == [0, 2, 3]
    for full, short in pairs:
        assert full.row.tolist() == short.row.tolist()
        assert full.labels[full.labels != IGNORE].tolist() == short.labels[short.labels != IGNORE].tolist()
        assert bool((full.prompt_end > short.prompt_end).all())
    assert paired_batches(data, {}) == []


def test_pairs_of_which_one_is_cut_are_left_out(answered, data: InMemoryData, material: Material):
    found = answered(["stupid king"], ["king"])
    lengths = {row: len(data.encoder.encode([full])[0].input_ids) for row, (full, _) in found.items()}
    rows = [{"prompt": "a", "response": "b"}]
    short = InMemoryData(train=rows, queries=rows, max_length=max(lengths.values()) - 1)
    short.attach(load_tokenizer(str(material.model)))
    kept = [row for full, _ in paired_batches(short, found) for row in full.row.tolist()]
    assert sorted(kept) == sorted(row for row, length in lengths.items() if length < max(lengths.values()))
    assert len(kept) < len(found)
