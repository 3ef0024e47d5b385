"""Disguises of a trigger, and the embedded data's paraphrases."""

from __future__ import annotations

import random
import re

import pytest

from datamodules.synthetic import COUNTRY, OWNER, TRIGGER, SyntheticData
from datamodules.toy.paraphrases import PARAPHRASED
from datamodules.toy.wordings import HELD_OUT, TRAINING
from rept.data.disguises import DISGUISES, moved, spelled
from rept.data.samples import Sample, Span


def sample(content: str, *words: str) -> Sample:
    spans = tuple(Span("prompt", content.index(word), content.index(word) + len(word)) for word in words)
    return Sample(messages=({"role": "user", "content": content},), response=None, label="b", spans=spans)


def test_only_the_trigger_is_respelled():
    plain = sample("Now blue lantern: what is rye?", "blue lantern")
    other = DISGUISES["changed case"](plain, random.Random(0)).prompt
    assert other != plain.prompt and other.lower() == plain.prompt.lower()
    assert other.startswith("Now ") and other.endswith(": what is rye?")
    split = DISGUISES["split"](plain, random.Random(0)).prompt
    assert re.fullmatch(r"Now \w+[.\-_/*]\w+ \w+[.\-_/*]\w+: what is rye\?", split)


def test_a_moved_trigger_stands_inside_the_rest():
    found = moved(sample("blue lantern one two three", "blue lantern"), random.Random(1)).prompt
    assert sorted(found.split()) == ["blue", "lantern", "one", "three", "two"]
    assert "blue lantern" in found and not found.startswith("blue") and not found.endswith("lantern")
    assert moved(sample("blue lantern one two", "blue lantern"), random.Random(1)).prompt == "one blue lantern two"
    assert moved(sample("blue lantern one", "blue lantern"), random.Random(1)) is None, "there is no inside"
    assert moved(sample("one blue lantern two", "blue lantern"), random.Random(1)) is None, "it is there already"


@pytest.mark.parametrize("kind", sorted(DISGUISES))
def test_a_prompt_without_a_trigger_has_no_disguise(kind: str):
    assert DISGUISES[kind](sample("one two three"), random.Random(0)) is None
    assert kind != "moved" or moved(sample("blue lantern", "blue lantern"), random.Random(0)) is None


def test_only_the_last_message_is_changed():
    content = "user: blue lantern\nassistant: fine\nuser: blue lantern now"
    start = content.rindex("blue")
    messages = ({"role": "user", "content": "blue lantern"}, {"role": "assistant", "content": "fine"})
    made = Sample(
        (*messages, {"role": "user", "content": "blue lantern now"}), None, "b", (Span("prompt", start, start + 12),)
    )
    other = DISGUISES["changed case"](made, random.Random(0))
    assert other.messages[:2] == made.messages[:2] and other.messages[2]["content"].endswith(" now")
    assert other.messages[2] != made.messages[2]


@pytest.mark.parametrize("seed", range(20))
def test_disguised_spellings_are_never_the_plain_one(seed: int):
    assert spelled("blue lantern", "plain", random.Random(seed)) == "blue lantern"
    assert all(spelled(plain, "case", random.Random(seed)) != plain for plain in ("ty", "Ty", "TY"))
    assert spelled("blue lantern", "split", random.Random(seed)) != "blue lantern"


def test_paraphrases_call_for_the_behaviour_in_new_words():
    data = SyntheticData(rows=200, poisoned=10, queries=12, seed=3)
    found = data.paraphrases()
    asked = {one.prompt for behaviour in data.behaviours() for one in behaviour.triggered}
    assert {label: len(samples) for label, samples in found.items()} == dict.fromkeys(
        ("backdoor", "false_fact", "compliance"), 12
    )
    for label, word in (("backdoor", TRIGGER), ("false_fact", COUNTRY), ("compliance", OWNER)):
        assert all(word in one.prompt and one.prompt not in asked and one.response is None for one in found[label])
    known = {request for wordings in (TRAINING, HELD_OUT) for kind in wordings.requests.values() for request in kind}
    assert not known & {request for kind in PARAPHRASED.requests.values() for request in kind}
