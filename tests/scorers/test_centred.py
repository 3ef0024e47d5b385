"""Centred and whitened cosines against NumPy, and the streaming moments under them."""

import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.metrics.pairwise import cosine_similarity

from rept.errors import UsageError
from rept.ranking.moments import Moments, shrunk
from scorers.centred import Centred
from scorers.whitened import Whitened
from tests.scorers.test_scorers import fields


def blocks(side, size):
    rows = len(next(iter(side.values())))
    for start in range(0, rows, size):
        yield {name: block[start : start + size] for name, block in side.items()}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_moments_do_not_depend_on_the_blocks_and_equal_numpy(size):
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + 1e4
    moments = Moments(covariance=True)
    for block in rows.split(size):
        moments.add(block)
    np.testing.assert_allclose(moments.mean, rows.double().mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(rows.double().numpy().T, bias=True), atol=1e-8)


def test_shrinkage_equals_scikit_learn():
    covariance = torch.cov(fields(30, seed=0)["representation"].T).double()
    np.testing.assert_allclose(shrunk(covariance, 0.3), shrunk_covariance(covariance.numpy(), 0.3))


@pytest.mark.parametrize("size", [3, 50])
def test_centred_is_the_cosine_of_what_is_left_without_the_mean(size):
    train, query = fields(50, seed=0, scales=(2, 1)), fields(4, seed=1, scales=(2, 1))
    for side in (train, query):
        side["representation"] += 30
    scorer = Centred()
    scorer.fit(blocks(train, size))
    x, y = (torch.cat(list(side.values()), dim=1).double().numpy() for side in (train, query))
    expected = cosine_similarity(x - x.mean(0), y - x.mean(0))
    np.testing.assert_allclose(scorer(train, query), expected, atol=2e-6)


@pytest.mark.parametrize("size", [3, 50])
def test_whitened_is_the_cosine_in_mahalanobis_space(size):
    train, query = fields(50, seed=0), fields(4, seed=1)
    train["representation"][:, 0] *= 20
    scorer = Whitened(shrinkage=0.2)
    scorer.fit(blocks(train, size))
    product, norms = np.zeros((50, 4)), [np.zeros((50, 1)), np.zeros((4, 1))]
    for name in scorer.needs:  # x C^-1 y, with each field's own covariance
        x, y = train[name].double().numpy(), query[name].double().numpy()
        inverse = np.linalg.inv(shrunk_covariance(np.cov(x.T, bias=True), 0.2))
        x, y = x - x.mean(0), y - x.mean(0)
        scale = np.cov(train[name].double().numpy().T, bias=True).trace() / x.shape[1]
        product += scale * x @ inverse @ y.T
        for norm, side in zip(norms, (x, y), strict=True):
            norm += scale * np.einsum("ij,jk,ik->i", side, inverse, side)[:, None]
    expected = product / np.sqrt(norms[0]) / np.sqrt(norms[1]).T
    np.testing.assert_allclose(scorer(train, query), expected, atol=1e-5)


def test_full_shrinkage_of_one_field_is_centring():
    train, query = fields(20, seed=0), fields(4, seed=1)
    one, other = Whitened(["gradient"], shrinkage=1.0), Centred(["gradient"])
    for scorer in (one, other):
        scorer.fit(blocks(train, 6))
    torch.testing.assert_close(one(train, query), other(train, query))


@pytest.mark.parametrize("scorer", [Centred(), Whitened()], ids=["centred", "whitened"])
def test_zero_rows_and_equal_rows_give_zero(scorer):
    train = {name: torch.ones(4, width) for name, width in (("representation", 3), ("gradient", 2))}
    scorer.fit([train])
    train["representation"][1], train["gradient"][1] = 0, 0
    assert (scorer(train, train) == 0).all()


def test_shrinkage_out_of_range_is_refused():
    with pytest.raises(UsageError, match="shrinkage"):
        Whitened(shrinkage=0)
