"""The interface of a behaviour scorer, which turns the queries of a behaviour into scores of training rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.ranking.spectrum import Spectrum

_REACHED = 5  # rows that score as high as the queries
_SHARE = 0.1  # of rows that a behaviour has at most


@dataclass(frozen=True)
class Examples:
    """What a behaviour's queries say in one field, rows scaled to norm 1.

    Attributes:
        count: of the queries.
        shift: (D) their mean minus the mean of training rows (or of clean queries, as far as these are reliable).
        noise: expected squared norm of the error of ``shift``, which falls with the number of queries.
    """

    count: int
    shift: Tensor
    noise: float


@dataclass(frozen=True)
class Direction:
    """``s(x) = (x - mean)^T M d / |x - mean|_M`` with ``M = (I + C / ridge)^-1``; without the norm if not ``cosine``.

    A large ridge gives the centred cosine, a small one that of whitened rows.
    """

    shift: Tensor  # d (D)
    ridge: float  # from 0 (exclusive) to infinity
    cosine: bool = True


class BehaviourScorer(ABC):
    """Scores training rows for a behaviour, one field at a time; fields are joined by how far a row stands out.

    A subclass gives one `Direction` or several candidates, and then chooses among them by the scores that they give to
    training rows.
    """

    @abstractmethod
    def directions(self, examples: Examples, rows: Spectrum) -> Sequence[Direction]:
        """Candidate directions in one field."""

    def choose(self, examples: Examples, rows: Spectrum, candidates: Sequence[Direction], scores: Tensor) -> int:
        """The number of the candidate to use, given their scores (M L) of training rows; by default the first."""
        return 0

    def weights(self, held_out: Tensor, rows: Tensor) -> Tensor:
        """Weights (F) of the fields, from the scores of held-out queries (F k) and of training rows (F M).

        ``w = m / v``, as in Fisher's discriminant. m is the mean of the queries' scores, shrunk by its error (James and
        Stein 1961) and at most the fifth highest score of a row: a field in which queries do not find one another, or
        in which no row reaches them, adds little. ``v = max(1, mean z^2 - m^2 / 10)`` is the mean square of the rows'
        scores without that of the rows to be found, which are at most a tenth of all: v is large where many rows that
        share something else score higher than the queries.
        """
        mean, count = held_out.mean(1), held_out.shape[1]
        error = ((held_out - mean[:, None]).square().sum(1) + 1) / count**2  # the rows' own variance is 1
        shrunk = mean.clamp(min=0) * (1 - error / mean.square().clamp(min=1e-300)).clamp(min=0)
        level = torch.minimum(shrunk, rows.topk(min(_REACHED, rows.shape[1]), dim=1).values[:, -1].clamp(min=0))
        weight: Tensor = level / (rows.square().mean(1) - _SHARE * level.square()).clamp(min=1)
        return weight

    def join(self, z: Tensor, weight: Tensor) -> Tensor:
        """Scores (n B) from those of each field (F n B): ``sum_f w_f z_f``.

        Without weights (all 0), as from a single query, ``log(1/F sum_f exp z_f)``: the field in which a row stands out
        dominates.
        """
        alone = torch.logsumexp(z, dim=0) - math.log(len(z))
        return torch.where(weight.any(0), (weight[:, None] * z).sum(0), alone)


def direction_scores(rows: Tensor, spectrum: Spectrum, directions: Sequence[Direction]) -> Tensor:
    """Scores (n L) of unit rows (n D) by each direction; 0 for zero rows. Float64."""
    centred = rows.double() - spectrum.mean
    y = centred @ spectrum.axes  # (n r)
    shifts = torch.stack([one.shift for one in directions], dim=1)  # (D L)
    within = spectrum.axes.T @ shifts  # (r L)
    ridge = torch.tensor([one.ridge for one in directions], dtype=torch.float64, device=y.device)
    weight = 1 / (1 + spectrum.variance[:, None] / ridge)  # (r L)
    product, norm = y @ (weight * within), y.square() @ weight
    if spectrum.axes.shape[1] < len(spectrum.axes):
        outside = 1 / (1 + spectrum.rest / ridge)  # (L)
        product += outside * (centred @ (shifts - spectrum.axes @ within))
        norm += outside * (centred.square().sum(1) - y.square().sum(1)).clamp(min=0)[:, None]
    cosine = torch.tensor([one.cosine for one in directions], device=y.device)
    scale = torch.where(cosine, norm.sqrt(), 1)
    return torch.where(rows.any(1, keepdim=True) & (scale > 0), product / scale, 0)


def deviations(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Median (L) of scores (M L), and root mean square deviations (L) of those below and of those above it.

    The rows that a direction is to find are in the upper half, so the lower one gives the scale of all others.
    """
    median = scores.median(dim=0).values

    def spread(chosen: Tensor) -> Tensor:
        square = torch.where(chosen, scores - median, 0).square().sum(0)
        return (square / chosen.sum(0).clamp(min=1)).sqrt()

    return median, spread(scores < median), spread(scores > median)
