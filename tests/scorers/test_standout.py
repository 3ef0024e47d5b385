"""The standout scorer compared with its formula."""

import numpy as np
import pytest
import torch

from rept.errors import UsageError
from scorers.standout import Standout
from tests.scorers.test_centred import blocks
from tests.scorers.test_scorers import fields


def direct(train, query, names, sharpness, weight):
    """The score of all pairs, one query and one row at a time, in NumPy."""
    score = np.zeros((len(train[names[0]]), len(query[names[0]])))
    for j in range(score.shape[1]):
        for name in names:
            x = train[name].double().numpy()
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            q = query[name][j].double().numpy()
            q = q / np.linalg.norm(q)
            z = (x @ q - (x @ q).mean()) / (x @ q).std()
            share = np.exp(sharpness * z) / np.exp(sharpness * z).sum()
            neighbours = share @ x
            q = q + weight * neighbours / np.linalg.norm(neighbours)
            s = x @ q / np.linalg.norm(q)
            score[:, j] += np.exp((s - s.mean()) / s.std()) / len(names)
    return np.log(score)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("names", [("representation",), ("representation", "gradient")])
def test_against_the_formula(names, weight):
    train, query = fields(30, seed=0), fields(4, seed=1)
    scorer = Standout(names, sharpness=2.0, weight=weight)
    scorer.fit(blocks(train, 7))
    np.testing.assert_allclose(scorer(train, query), direct(train, query, names, 2.0, weight), atol=2e-5)


def test_a_row_that_stands_out_in_one_field_alone_comes_first():
    train, query = fields(200, seed=0, scales=(1, 1)), fields(1, seed=1, scales=(1, 1))
    train["gradient"][17] = query["gradient"][0]
    train["representation"] += 3  # all rows alike in this one
    query["representation"] += 3
    scorer = Standout()
    scorer.fit([train])
    assert scorer(train, query).argmax() == 17


def test_blocks_of_rows_and_new_queries_are_scored_alike():
    train, query, other = fields(20, seed=0), fields(3, seed=1), fields(3, seed=2)
    scorer = Standout()
    scorer.fit([train])
    whole = scorer(train, query)
    fresh = Standout()
    fresh.fit([train])
    assert torch.equal(scorer(train, other), fresh(train, other))
    torch.testing.assert_close(torch.cat([scorer(part, query) for part in blocks(train, 6)]), whole)


def test_zero_rows_give_zero():
    train, query = fields(9, seed=0), fields(3, seed=1)
    scorer = Standout()
    scorer.fit([train])
    for side in (train, query):
        for block in side.values():
            block[1] = 0
    score = scorer(train, query)
    assert (score[1] == 0).all() and (score[:, 1] == 0).all() and score.isfinite().all()


def test_equal_rows_give_zero():
    rows = {name: torch.ones(4, 3) for name in ("representation", "gradient")}
    scorer = Standout()
    scorer.fit([rows])
    assert scorer(rows, rows).abs().max() < 1e-6


def test_rows_that_differ_in_their_norm_alone_give_zero():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 40, generator=generator) * torch.rand(37, 1, generator=generator)
    scorer = Standout(["representation"])
    scorer.fit([{"representation": rows}])
    query = {"representation": torch.randn(5, 40, generator=generator)}
    assert (scorer({"representation": rows}, query) == 0).all()


@pytest.mark.parametrize("setting", [{"sharpness": -1}, {"weight": -1}, {"memory": 1}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        Standout(**setting)
