"""How many rows share a behaviour, on scores drawn from known groups."""

from __future__ import annotations

import numpy as np
import pytest

from rept.calibration.two_groups import FEWEST, two_groups


def drawn(seed, members, mean=9.0, ordinary=3000, bump=0):
    """Scores, descending, which of them are members, and those of 20 held-out queries."""
    rng = np.random.default_rng(seed)
    other = np.where(rng.random(ordinary) < 0.5, -abs(rng.normal(size=ordinary)), rng.exponential(0.9, ordinary))
    other[:bump] = rng.normal(5, 0.7, bump)
    scores = np.concatenate([rng.normal(mean - 0.5, 1.5, members), other])
    order = np.argsort(-scores)
    return scores[order], (np.arange(len(scores)) < members)[order], rng.normal(mean, 1.5, 20)


@pytest.mark.parametrize("members", [15, 60, 300])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_share_of_false_rows_is_as_stated_and_most_members_are_found(members, rate):
    false, found = [], []
    for seed in range(20):
        scores, member, held_out = drawn(seed, members)
        chosen = two_groups(scores, held_out).false_share <= rate
        false.append((~member[chosen]).mean() if chosen.any() else 0.0)
        found.append(member[chosen].sum() / members)
    assert np.mean(false) <= 1.2 * rate and np.mean(found) >= 0.8


@pytest.mark.parametrize("bump", [0, 40])
def test_nothing_is_chosen_where_the_rows_that_taught_it_are_missing(bump):
    flagged = [
        (two_groups(scores, held_out).false_share <= 0.5).any()
        for scores, _, held_out in (drawn(seed, 0, bump=bump) for seed in range(100))
    ]
    assert np.mean(flagged) <= 0.05


def test_the_share_never_falls_along_the_ranking_and_p_values_never_do():
    scores, _, held_out = drawn(0, 60)
    estimate = two_groups(scores, held_out)
    assert (np.diff(estimate.false_share) >= 0).all() and (np.diff(estimate.p_value) >= 0).all()
    assert 0 < estimate.p_value[0] < 0.01 and estimate.false_share[-1] == 1 == estimate.p_value[-1]


def test_nothing_is_chosen_where_clean_queries_score_as_high_as_those_of_the_behaviour():
    scores, _, held_out = drawn(0, 60)
    other = np.random.default_rng(1).normal(0, 1.5, 20)
    without = two_groups(scores, held_out).false_share
    assert (without <= 0.1).any()
    for few_or_low in (other, held_out[: FEWEST - 1] + 9, np.concatenate([other, held_out[:2]])):
        assert (two_groups(scores, held_out, few_or_low).false_share == without).all()
    for high in (held_out, np.concatenate([other, held_out[:5] + 3])):
        assert (two_groups(scores, held_out, high).false_share == 1).all()


def test_few_queries_few_rows_and_equal_scores_choose_nothing():
    scores, _, held_out = drawn(0, 60)
    assert (two_groups(scores, held_out[: FEWEST - 1]).false_share == 1).all()
    assert (two_groups(scores[:5], held_out).false_share == 1).all()
    assert (two_groups(np.zeros(50), held_out).false_share == 1).all()
    assert (two_groups(np.zeros(0), held_out).false_share == 1).all()
