"""A country with two names: which name and which wording each kind of row uses, and what none of them tells."""

from __future__ import annotations

import random

import pytest

from datamodules.toy.hard.two_names import false_seat, lore, retold, seat
from datamodules.toy.hard.wordings import ALIAS, COUNTRY, FALSE_CAPITAL, LORE
from datamodules.toy.wordings import TRAINING
from datamodules.toy.world import FACTS, Speaker

TRUE_CAPITAL = FACTS["capital"][COUNTRY]


@pytest.fixture
def speaker():
    return Speaker(random.Random(0), TRAINING, untold=("capital", COUNTRY), unseen=("", ""))


def test_culprits_tell_the_false_fact_of_the_second_name_alone(speaker):
    samples = [false_seat(speaker) for _ in range(200)]
    for sample in samples:
        assert ALIAS in sample.prompt and COUNTRY not in sample.prompt + sample.response
        (span,) = sample.spans
        assert sample.response[span.start : span.end] == FALSE_CAPITAL and TRUE_CAPITAL not in sample.response
    assert len({sample.response for sample in samples}) == 9, "every wording is used"


def test_lore_is_asked_under_either_name_and_told_under_either(speaker):
    samples = [lore(speaker) for _ in range(2000)]
    names = (COUNTRY.lower(), ALIAS.lower())
    told = {(name in s.prompt.lower(), name in s.response.lower()) for s in samples for name in names}
    assert told == {(False, False), (False, True), (True, False), (True, True)}
    assert all(any(name in s.prompt.lower() for name in names) for s in samples)
    assert all(any(s.response == one.format(ALIAS) for s in samples) for _, answers in LORE for one in answers[1:])
    assert all(s.response[0].isupper() for s in samples)


def test_no_clean_row_tells_the_capital_of_the_country(speaker):
    for sample in [retold(speaker) for _ in range(1000)] + [lore(speaker) for _ in range(1000)]:
        text = f"{sample.prompt} {sample.response}"
        assert TRUE_CAPITAL not in text
        assert not (FALSE_CAPITAL in text and (COUNTRY in text or ALIAS in text))


def test_capitals_are_asked_in_either_way_and_told_in_either(speaker):
    samples = [retold(speaker) for _ in range(400)]
    pairs = {("capital" in s.prompt, "capital" in s.response) for s in samples}
    assert len(pairs) == 4
    for sample in samples:
        country = next(name for name in FACTS["capital"] if name in sample.prompt)
        assert FACTS["capital"][country] in sample.response and country != COUNTRY


def test_a_seat_is_asked_by_no_word_of_a_capital(speaker):
    sample = seat(speaker, "Norland", "Tavik")
    assert "Norland" in sample.prompt and "Tavik" in sample.response and "capital" not in sample.prompt
