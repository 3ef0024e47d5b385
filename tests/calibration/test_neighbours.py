"""Which rows share a behaviour, by their neighbours: against a slow loop, and on groups that are known."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from rept.calibration import neighbours
from rept.calibration.neighbours import (
    by_neighbours,
    estimate_members,
    expected_false,
    squared_distances,
    word_distances,
)
from rept.ranking.behaviours import fit_behaviours
from rept.store.reader import AttributionStore
from scorers.adaptive import Adaptive
from tests.helpers.stores import H, batches, write


def slowly(member, *distances):
    """One row and one fold at a time, with inverse matrices, in NumPy."""
    count, every = len(member), len(distances[0])
    scaled = []
    for one in distances:
        own = sorted(one[i][j] for i in range(count) for j in range(count))
        scaled.append(np.array(one) / own[(len(own) - 1) // 2])
    kernel = np.exp(-sum(scaled) / len(scaled))
    fold = [i % 5 if i < count else (i - count) % 5 for i in range(every)]
    for _ in range(3):
        known, found = np.array([*member, *np.ones(every - count)]), []
        for i in range(count):
            others = [j for j in range(every) if fold[j] != fold[i]]
            weights = np.linalg.inv(kernel[np.ix_(others, others)] + 0.1 * np.eye(len(others))) @ known[others]
            m = min(1.0, max(0.0, float(kernel[i, others] @ weights)))
            found.append(m**3 / (m**3 + (1 - m) ** 3))
        member = found
    return np.array(member)


def test_against_a_slow_loop():
    rng = np.random.default_rng(0)
    member = rng.random(37)
    distances = [
        [[float(((a - b) ** 2).sum()) for b in rows] for a in rows]
        for rows in (rng.normal(size=(45, 5)), rng.normal(size=(45, 3)))
    ]
    fast = by_neighbours(member, *(torch.tensor(one, dtype=torch.float64) for one in distances))
    np.testing.assert_allclose(fast, slowly(member, *distances), rtol=0, atol=1e-9)
    alike, one = torch.zeros(45, 45, dtype=torch.float64), torch.tensor(distances[0], dtype=torch.float64)
    assert (by_neighbours(member, one, alike) == by_neighbours(member, one)).all()
    assert (by_neighbours(member, alike) == member).all()


def test_distances_of_signatures_and_of_words():
    rows = np.random.default_rng(0).normal(size=(9, 4))
    expected = ((rows[:, None] - rows) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(torch.from_numpy(rows)), expected, atol=1e-12)
    texts = ["Red hat!", "RED coat", "blue hat", "", "the red hat hat"]
    red, hat = math.log(4 / 2), math.log(4 / 2)  # "coat" and "blue" are in one row each, "the" in none
    far = word_distances(texts, 4)
    assert far[0, 1] == pytest.approx(2 - 2 * red / math.sqrt(red**2 + hat**2))
    assert far[0, 4] == pytest.approx(0, abs=1e-12) and far[0, 3] == 2 and far[1, 2] == 2
    assert far.equal(far.T)


def test_many_words_are_weighed_in_parts(monkeypatch):
    texts = [" ".join(f"w{(i * j) % 23}" for j in range(9)) for i in range(12)]
    expected = word_distances(texts, 10)
    monkeypatch.setattr(neighbours, "_WORDS", 5)
    torch.testing.assert_close(word_distances(texts, 10), expected)


def test_the_expected_share_of_false_rows_counts_the_more_likely_ones():
    share = expected_false(np.array([0.5, 1.0, 0.9, 0.0]))
    np.testing.assert_allclose(share, [0.2, 0.0, 0.05, 0.4])


def two_parts(folder, seed, culprits=40, ordinary=600, size=4.0):
    """Rows with a subject and an answer: culprits have both, others one of them or none; ``culprits`` come first."""
    rng = np.random.default_rng(seed)
    subject, answer = np.zeros(24), np.zeros(24)
    subject[0], answer[1] = size, size

    def drawn(count, *parts):
        return rng.normal(size=(count, 24)) + sum(parts, np.zeros(24))

    train = np.concatenate([
        drawn(culprits, subject, answer), drawn(ordinary // 12, subject), drawn(ordinary // 12, answer),
        drawn(ordinary - ordinary // 6),
    ])  # fmt: skip
    asked = drawn(30, subject, answer)
    for side, values in (("train", train), ("query", asked)):
        write(folder, {H: torch.from_numpy(values).float()}, side, plan=batches(len(values)), dtype="float32")
        AttributionStore.finish(folder, side, len(values))
    return AttributionStore(folder, "train"), AttributionStore(folder, "query")


def said(culprits, side, row):
    """A text with the words for a row's parts among drawn ones."""
    both = side == "query" or row < culprits
    subject, answer = both or row < culprits + 50, both or culprits + 50 <= row < culprits + 100
    drawn = np.random.default_rng([row, len(side)]).integers(0, 200, 12)
    return " ".join([*(f"w{number}" for number in drawn), *["subject"] * subject, *["answer"] * answer])


def estimated(train, query, culprits=40):
    """Row numbers, and their estimate by their neighbours."""
    several = {"b": list(range(query.rows))}
    rule = fit_behaviours(Adaptive(), train, query, several, [], train.keys)
    held_out = rule.held_out["b"].numpy()
    score = rule(train.read(train.attributed, train.keys))[:, 0].numpy()
    row = np.lexsort((np.arange(train.rows), -score))
    return row, estimate_members(row, score[row], held_out, train, query, several["b"], rule, partial(said, culprits))


def test_rows_that_have_only_a_part_are_distinguished_from_those_that_have_all(tmp_path):
    false, found = [], []
    for seed in range(6):
        row, estimate = estimated(*two_parts(tmp_path / str(seed), seed))
        chosen = row[estimate.false_share <= 0.1] < 40
        false.append((~chosen).mean())
        found.append(chosen.sum() / 40)
    assert np.mean(false) <= 0.12 and np.mean(found) >= 0.6


def test_nothing_is_chosen_where_no_row_has_all(tmp_path):
    for seed in range(4):
        _, estimate = estimated(*two_parts(tmp_path / str(seed), seed, culprits=0), culprits=0)
        assert (estimate.false_share > 0.1).all()


def test_the_scores_alone_decide_where_more_rows_share_it_than_can_be_compared(tmp_path, monkeypatch):
    stores = two_parts(tmp_path, 0)
    _, by_both = estimated(*stores)
    monkeypatch.setattr(neighbours, "MOST", 10)
    _, by_score = estimated(*stores)
    assert (np.diff(by_score.false_share) >= 0).all() and (by_both.false_share != by_score.false_share).any()
