"""Joined scorers compared with their formula, and what ranks keep out."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from rept.errors import UsageError
from scorers.base import Scorer
from scorers.cosine import Cosine
from scorers.distance import Distance
from scorers.joined import Joined, normal_scores
from scorers.standout import Standout
from tests.scorers.test_centred import blocks
from tests.scorers.test_scorers import fields


def by_loop(score, reference):
    """By the shares of reference scores below and up to a score that is one of them, or beyond all of them."""
    out = np.zeros(score.shape)
    for (i, q), value in np.ndenumerate(score):
        column = reference[:, q]
        value = column[abs(column - min(max(value, column.min()), column.max())).argmin()]
        out[i, q] = NormalDist().inv_cdf(((column < value).sum() + (column <= value).sum()) / 2 / len(column))
    return out


def test_normal_scores_are_quantiles_of_shared_ranks():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, 9, (40, 3), generator=generator).float()
    score = torch.cat([reference[:10], torch.tensor([[-5.0, 20.0, 3.0]])])
    np.testing.assert_allclose(normal_scores(score, reference), by_loop(score.numpy(), reference.numpy()), atol=1e-6)


def test_between_two_references_it_is_continuous():
    reference = torch.tensor([[0.0], [1.0], [2.0]])
    half = normal_scores(torch.tensor([[0.5], [1.0]]), reference)[:, 0]
    assert half.tolist() == pytest.approx([NormalDist().inv_cdf(1 / 3), 0])


def test_against_the_formula():
    train, query = fields(30, seed=0), fields(4, seed=1)
    scorer = Joined([Standout(), Distance(), Cosine(["gradient"])], weight=0.5)
    scorer.fit(list(blocks(train, 7)))
    first = Standout()
    first.fit([train])
    parts = [Distance()(train, query), Cosine(["gradient"])(train, query)]
    expected = first(train, query).numpy() + 0.5 * sum(by_loop(part.numpy(), part.numpy()) for part in parts)
    np.testing.assert_allclose(scorer(train, query), expected, atol=1e-5)
    pieces = torch.cat([scorer(part, query) for part in blocks(train, 6)])
    torch.testing.assert_close(pieces, scorer(train, query), rtol=1e-4, atol=1e-4)
    other = fields(4, seed=2)
    fresh = Joined([Standout(), Distance(), Cosine(["gradient"])], weight=0.5)
    fresh.fit([train])
    assert torch.equal(scorer(train, other), fresh(train, other))


def test_a_row_with_an_enormous_score_elsewhere_does_not_overtake_one_that_stands_out():
    class First(Scorer):
        needs = ("a",)

        def __call__(self, train, query):
            return train["a"] @ query["a"].T

    class Second(First):
        needs = ("b",)

        def __call__(self, train, query):
            return train["b"] @ query["b"].T

    train = {"a": torch.zeros(500, 1), "b": torch.zeros(500, 1)}
    train["a"][0], train["b"][1] = 6.0, 1e6
    train["b"][2:] = torch.rand(498, 1)
    scorer = Joined([First(), Second()])
    scorer.fit([train])
    order = scorer(train, {"a": torch.ones(1, 1), "b": torch.ones(1, 1)})[:, 0].argsort(descending=True)
    assert order[:2].tolist() == [0, 1]
    assert scorer.needs == ("a", "b")


@pytest.mark.parametrize("setting", [{"scorers": [Cosine()]}, {"weight": -1.0}, {"memory": 1}, {"scorers": [1, 2]}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match="Expected scorer"):
        Joined(**{"scorers": [Cosine(), Distance()], **setting})
