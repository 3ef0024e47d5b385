"""Minus the Euclidean distance of two signatures: the nearest row comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rept.types import FIELDS
from scorers.base import Scorer, check_pair


class Distance(Scorer):
    """``s(x, y) = -|x - y|`` of the concatenated fields; 0 where one of the two is zero.

    In float64: by |x|^2 + |y|^2 - 2 x . y, float32 would lose the distances of near rows.
    """

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self.needs = tuple(fields)

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        x, y = (torch.cat([side[field] for field in self.needs], dim=1) for side in (train, query))
        check_pair(x, y)
        return torch.where(x.any(1, keepdim=True) & y.any(1), -torch.cdist(x.double(), y.double()), 0).float()
