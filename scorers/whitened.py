"""The cosine of signatures whitened by the covariance of the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rept.errors import UsageError
from rept.ranking.moments import Moments, shrunk
from rept.types import FIELDS
from scorers.base import Scorer
from scorers.centred import centre
from scorers.cosine import cosine


class Whitened(Scorer):
    """``s(x, y) = cos(W (x - m), W (y - m))`` with ``W^T W = C^-1``: all directions of the training data count equally.

    m and C are mean and shrunk covariance of the training rows (see `rept.ranking.moments.shrunk`). Each field is
    whitened by itself, so that none dominates, and the whitened fields are concatenated. W is the inverse of C's
    Cholesky factor; cosines are the same for any other root of C^-1.

    Args:
        fields: the blocks that are whitened and concatenated.
        shrinkage: share of the mean variance in the covariance, above 0 and up to 1; at 1 it is `Centred` with fields
            of one mean norm.
        centre: false takes 0 for m, and so the second moment of the rows for C, as TrackStar (arXiv 2410.17413) does.

    Raises:
        UsageError: shrinkage is out of its range.
    """

    def __init__(self, fields: Sequence[str] = FIELDS, shrinkage: float = 0.1, centre: bool = True) -> None:
        if not 0 < shrinkage <= 1:
            raise UsageError(f"Expected scorer.shrinkage to be above 0 and at most 1, but got {shrinkage}.")
        self.needs = tuple(fields)
        self.shrinkage = shrinkage
        self.centre = centre
        self.mean: dict[str, Tensor] = {}
        self.factor: dict[str, Tensor] = {}  # lower triangular (D D), C = factor factor^T

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        moments = {field: Moments(covariance=True) for field in self.needs}
        for block in train:
            for field in self.needs:
                moments[field].add(block[field])
        for field, seen in moments.items():
            self.mean[field] = seen.mean if self.centre else torch.zeros_like(seen.mean)
            around = seen.mean - self.mean[field]
            covariance = shrunk(seen.covariance + torch.outer(around, around), self.shrinkage)
            if not covariance.any():  # all rows are equal: there is nothing to whiten
                covariance = torch.eye(len(covariance)).to(covariance)
            self.factor[field] = torch.linalg.cholesky(covariance / covariance.diagonal().mean())

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        return cosine(*([self._whiten(field, side[field]) for field in self.needs] for side in (train, query)))

    def _whiten(self, field: str, rows: Tensor) -> Tensor:
        centred = centre(rows, self.mean[field]).double()
        whitened: Tensor = torch.linalg.solve_triangular(self.factor[field], centred.T, upper=False).T
        return whitened.to(rows.dtype)
