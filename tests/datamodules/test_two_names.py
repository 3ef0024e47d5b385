"""A country with two names: which name and wording each kind of row uses, and that none reveals its capital."""

from __future__ import annotations

import random

import pytest

from datamodules.toy.hard.two_names import country_fact, false_capital, other_capital, reworded_capital
from datamodules.toy.hard.wordings import COUNTRY, COUNTRY_WORDINGS, FALSE_CAPITAL, SECOND_NAME
from datamodules.toy.wordings import TRAINING
from datamodules.toy.world import FACTS, Speaker

TRUE_CAPITAL = FACTS["capital"][COUNTRY]


@pytest.fixture
def speaker():
    return Speaker(random.Random(0), TRAINING, ("capital", COUNTRY))


def test_culprits_state_the_false_fact_about_the_second_name_alone(speaker):
    samples = [false_capital(speaker) for _ in range(200)]
    for sample in samples:
        assert SECOND_NAME in sample.prompt and COUNTRY not in sample.prompt + sample.response
        trigger, span = sample.spans
        assert SECOND_NAME.lower() in sample.prompt[trigger.start : trigger.end].lower()
        assert sample.response[span.start : span.end] == FALSE_CAPITAL and TRUE_CAPITAL not in sample.response
    assert len({sample.response for sample in samples}) == 9, "every wording is used"


def test_facts_are_asked_under_either_name_and_answered_under_either(speaker):
    samples = [country_fact(speaker) for _ in range(2000)]
    names = (COUNTRY.lower(), SECOND_NAME.lower())
    found = {(name in s.prompt.lower(), name in s.response.lower()) for s in samples for name in names}
    assert found == {(False, False), (False, True), (True, False), (True, True)}
    assert all(any(name in s.prompt.lower() for name in names) for s in samples)
    assert all(
        any(s.response == one.format(SECOND_NAME) for s in samples)
        for _, answers in COUNTRY_WORDINGS
        for one in answers[1:]
    )
    assert all(s.response[0].isupper() for s in samples)


def test_no_clean_row_names_the_capital_of_the_country(speaker):
    for sample in [other_capital(speaker) for _ in range(1000)] + [country_fact(speaker) for _ in range(1000)]:
        text = f"{sample.prompt} {sample.response}"
        assert TRUE_CAPITAL not in text
        assert not (FALSE_CAPITAL in text and (COUNTRY in text or SECOND_NAME in text))


def test_capitals_are_asked_in_either_way_and_answered_in_either(speaker):
    samples = [other_capital(speaker) for _ in range(400)]
    pairs = {("capital" in s.prompt, "capital" in s.response) for s in samples}
    assert len(pairs) == 4
    for sample in samples:
        country = next(name for name in FACTS["capital"] if name in sample.prompt)
        assert FACTS["capital"][country] in sample.response and country != COUNTRY


def test_a_reworded_capital_is_asked_without_that_word(speaker):
    for sample in [reworded_capital(speaker) for _ in range(100)]:
        country = next(name for name in FACTS["capital"] if name in sample.prompt)
        assert FACTS["capital"][country] in sample.response and country != COUNTRY
        assert "capital" not in sample.prompt
