"""Mean and principal axes of the training rows of one field, from one pass over the store."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.ranking.moments import Moments

WIDEST = 4096  # above, a D x D matrix and its eigenvectors would take more than half a GiB
RANK = 1024  # axes that are kept there, fewer beyond a width of 32,768
_NUMBERS = 2**25  # in these axes, at most: 256 MiB


@dataclass(frozen=True)
class Spectrum:
    """``C = V diag(e) V^T + rest (I - V V^T)``: the covariance of rows around their mean, in float64."""

    mean: Tensor  # (D)
    axes: Tensor  # V (D r), orthonormal; r = D up to a width of `WIDEST`, so that nothing is left out
    variance: Tensor  # e (r), descending
    rest: float  # mean variance of the directions outside the axes; 0 if there are none

    @property
    def trace(self) -> float:
        """The sum of all variances: the mean squared distance of rows from their mean."""
        return float(self.variance.sum()) + self.rest * (len(self.axes) - len(self.variance))

    @property
    def square(self) -> float:
        """The sum of all squared variances."""
        return float(self.variance.square().sum()) + self.rest**2 * (len(self.axes) - len(self.variance))

    def to(self, device: torch.device | str) -> Spectrum:
        return Spectrum(self.mean.to(device), self.axes.to(device), self.variance.to(device), self.rest)


def spectrum(blocks: Iterable[Tensor], width: int, widest: int = WIDEST, rank: int = RANK) -> Spectrum:
    """The spectrum of rows that come in blocks (n D), exact up to a width of ``widest``.

    Wider rows keep ``rank`` axes, updated block by block: ``[S V^T; centred rows; mean correction]`` is decomposed
    again and cut (Ross et al. 2008, incremental PCA), and what is cut counts as equal variance in all other directions.
    Memory: a few times rank x D numbers.
    """
    if width > widest:
        return _low_rank(blocks, width, max(1, min(rank, _NUMBERS // width)))
    moments = Moments(covariance=True)
    for block in blocks:
        moments.add(block)
    if not moments.rows:
        return _nothing(width)
    variance, axes = torch.linalg.eigh(moments.covariance)
    return Spectrum(moments.mean, axes.flip(1), variance.flip(0).clamp(min=0), 0.0)


def _low_rank(blocks: Iterable[Tensor], width: int, rank: int) -> Spectrum:
    scaled = torch.zeros(0, width, dtype=torch.float64)  # S V^T (r D)
    mean, rows, total = torch.zeros(width, dtype=torch.float64), 0, 0.0
    for block in (part for whole in blocks for part in torch.split(whole, 2 * rank)):
        new = block.double()
        center, together = new.mean(0), rows + len(new)
        mean = mean.to(center)
        step = (center - mean) * math.sqrt(rows * len(new) / together)
        added = torch.cat([new - center, step[None]])
        total += float(added.square().sum())
        scaled = _cut(torch.cat([scaled.to(added), added]), rank)
        mean, rows = mean + (center - mean) * (len(new) / together) if rows else center, together
    if not rows:
        return _nothing(width)
    square = scaled.square().sum(1)
    kept = square > square.max() * 1e-14
    rest = max(0.0, total - float(square.sum())) / rows / max(1, width - int(kept.sum()))
    axes = (scaled[kept] / square[kept].sqrt()[:, None]).T
    return Spectrum(mean, axes.contiguous(), square[kept] / rows, rest)


def _nothing(width: int) -> Spectrum:
    """Of no rows: nothing varies."""
    mean, axes = torch.zeros(width, dtype=torch.float64), torch.zeros(width, 0, dtype=torch.float64)
    return Spectrum(mean, axes, mean[:0], 0.0)


def _cut(rows: Tensor, rank: int) -> Tensor:
    """The first ``rank`` rows of ``S V^T`` of the decomposition ``U S V^T`` of rows (n D), from their Gram matrix."""
    _, left = torch.linalg.eigh(rows @ rows.T)
    first: Tensor = left.flip(1)[:, :rank].T @ rows
    return first
