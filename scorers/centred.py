"""The cosine of signatures from which the mean of the training rows is removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rept.ranking.moments import Moments
from rept.types import FIELDS
from scorers.base import Scorer
from scorers.cosine import cosine


def centre(rows: Tensor, mean: Tensor) -> Tensor:
    """``x - mean`` of rows (N D); a zero row has no signature and stays zero."""
    return torch.where(rows.any(1, keepdim=True), rows.double() - mean, 0).to(rows.dtype)


class Centred(Scorer):
    """``s(x, y) = cos(x - m, y - m)`` with the mean m of the training rows; fields are concatenated.

    Hidden states of language models are in a narrow cone around their mean, which does not depend on the sample, and
    plain cosines are close to 1 for all pairs (Ethayarajh, EMNLP 2019; Mu and Viswanath, ICLR 2018).

    Args:
        fields: the blocks that are centred and concatenated.
    """

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self.needs = tuple(fields)
        self.mean: dict[str, Tensor] = {}

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        moments = {field: Moments() for field in self.needs}
        for block in train:
            for field in self.needs:
                moments[field].add(block[field])
        self.mean = {field: seen.mean for field, seen in moments.items()}

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        sides = [[centre(side[field], self.mean[field]) for field in self.needs] for side in (train, query)]
        return cosine(*sides)
