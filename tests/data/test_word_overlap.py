"""The share of informative words that two texts have in common, against a direct count."""

from __future__ import annotations

import math

import pytest
import torch

from rept.data.word_overlap import WordOverlap, words

SAMPLE = ["the cat sat", "the dog sat", "the bird flew", "the cat flew home"]


def by_hand(one: str, other: str) -> float:
    def value(word: str) -> float:
        return math.log((len(SAMPLE) + 1) / (1 + sum(word in words(text) for text in SAMPLE)))

    smaller = min(sum(map(value, set(words(text)))) for text in (one, other))
    return sum(map(value, set(words(one)) & set(words(other)))) / smaller if smaller else 0


def test_shares_follow_the_definition():
    texts = ["The cat, the CAT!", "a zebra sat", "the", "", "dog home cat unheard"]
    found = WordOverlap(SAMPLE, SAMPLE)(texts)
    expected = [[by_hand(text, reference) for reference in SAMPLE] for text in texts]
    assert found.flatten().tolist() == pytest.approx([share for row in expected for share in row], abs=1e-6)


def test_the_same_text_overlaps_completely_and_empty_texts_not_at_all():
    overlap = WordOverlap([*SAMPLE, ""], SAMPLE)
    assert overlap(SAMPLE).diagonal().tolist() == pytest.approx([1] * 4)
    assert not overlap(["", "the the"]).any() and not overlap(SAMPLE)[:, 4].any()
    assert overlap([]).shape == (0, 5) and WordOverlap(["", ""], SAMPLE)(["cat"]).tolist() == [[0, 0]]


def test_words_of_all_texts_count_nothing():
    assert torch.equal(WordOverlap(["the cat"], SAMPLE)(["the dog"]), torch.zeros(1, 1))
