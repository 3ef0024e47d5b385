"""The scores of rows by a direction, against dense matrices."""

from __future__ import annotations

import pytest
import torch

from rept.ranking.behaviour_scorer import Direction, direction_scores
from rept.ranking.behaviours import Means, contrast
from rept.ranking.spectrum import Spectrum

WIDTH = 12


def random_spectrum(rank: int) -> Spectrum:
    torch.manual_seed(rank)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q[:, :rank]
    variance = torch.rand(rank, dtype=torch.float64).sort(descending=True).values + 0.1
    rest = 0.05 if rank < WIDTH else 0.0
    return Spectrum(torch.randn(WIDTH, dtype=torch.float64) / 10, axes, variance, rest)


@pytest.mark.parametrize("rank", [3, WIDTH])
@pytest.mark.parametrize("cosine", [True, False])
def test_scores_follow_the_formula_with_axes_left_out_and_without(rank: int, cosine: bool) -> None:
    rows = random_spectrum(rank)
    unit = torch.nn.functional.normalize(torch.randn(20, WIDTH), dim=1)
    directions = [Direction(torch.randn(WIDTH, dtype=torch.float64), ridge, cosine) for ridge in (0.01, 0.3, 1e9)]
    identity = torch.eye(WIDTH, dtype=torch.float64)
    outside = identity - rows.axes @ rows.axes.T
    covariance = rows.axes @ rows.variance.diag() @ rows.axes.T + rows.rest * outside
    found = direction_scores(unit, rows, directions)
    for i, one in enumerate(directions):
        metric = torch.linalg.inv(identity + covariance / one.ridge)
        centred = unit.double() - rows.mean
        norm = ((centred @ metric) * centred).sum(1).sqrt() if cosine else 1
        assert torch.allclose(found[:, i], (centred @ metric @ one.shift) / norm, rtol=1e-9, atol=1e-12)


def test_a_behaviour_whose_queries_have_no_signature_has_no_direction() -> None:
    rows = random_spectrum(WIDTH)
    some = Means(3, torch.full((WIDTH,), 0.1, dtype=torch.float64))
    none = Means(0, torch.zeros(WIDTH, dtype=torch.float64))
    assert contrast(some, none, rows).shift.any()
    for clean in (none, some):
        assert not contrast(none, clean, rows).shift.any()
