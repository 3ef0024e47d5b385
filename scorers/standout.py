"""How far a training row stands out from the others, over several fields, after the query met its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rept.errors import UsageError
from rept.utils.tensors import unit
from scorers.base import FIELDS, Scorer
from scorers.cosine import cosine
from scorers.row_sample import RowSample


def standardised(score: Tensor, reference: Tensor) -> Tensor:
    """``(s - mean) / deviation`` of scores (N Q), with each query's mean and deviation over reference scores (M Q).

    0 where a query's reference scores are all the same.
    """
    deviation, mean = torch.std_mean(reference.double(), dim=0, correction=0)
    return torch.where(deviation > 1e-12, (score - mean) / deviation, 0)


def expanded(query: Tensor, rows: Tensor, sharpness: float, weight: float) -> Tensor:
    """Queries (Q D) moved towards the training rows (M D) that they resemble most; both of norm 1, or zero.

    ``q' = q + weight * unit(sum_i softmax_i(sharpness * z_i) x_i)``, where ``z_i`` are the standardised cosines of q.
    A soft form of pseudo-relevance feedback (Rocchio 1971): what several near rows share speaks louder than what is the
    query's own.
    """
    similarity = rows @ query.T  # (M Q)
    share = torch.softmax(sharpness * standardised(similarity, similarity), dim=0).to(rows.dtype)
    return query + weight * unit(share.T @ rows)


class Standout(Scorer):
    """``s = log(1/F sum_f exp z_f)``, where ``z_f`` is the cosine in field f in standard deviations over training rows.

    A cosine of 0.9 is much in one field and nothing in another; standardised for each query (mean and deviation of its
    own cosines over the training rows), fields can be compared, and the sum of exponentials lets the one speak in which
    the row stands out most: a trigger is seen at the last prompt token alone, a false fact in the mean of the text.
    Before that, each field's query is `expanded` by its neighbours among the training rows.

    Fit keeps at most ``memory`` training rows (a uniform sample beyond that).

    Args:
        fields: the blocks that are compared.
        sharpness: of the softmax over neighbours, in 1 / standard deviations.
        weight: of the neighbours beside the query itself; 0: the query alone.
        memory: training rows that are kept for neighbours, means and deviations.
        seed: of their choice, where there are more.

    Raises:
        UsageError: a setting is out of its range.
    """

    def __init__(
        self,
        fields: Sequence[str] = FIELDS,
        sharpness: float = 8.0,
        weight: float = 1.0,
        memory: int = 32768,
        seed: int = 0,
    ) -> None:
        if sharpness < 0 or weight < 0 or memory < 2:
            raise UsageError(
                "Expected scorer.sharpness >= 0, scorer.weight >= 0 and scorer.memory >= 2, "
                f"but got {sharpness}, {weight} and {memory}."
            )
        self.needs = tuple(fields)
        self.sharpness, self.weight, self.memory, self.seed = sharpness, weight, memory, seed
        self._sample: dict[str, Tensor] = {}  # unit rows (M D) of each field
        self._asked: Mapping[str, Tensor] | None = None  # the queries that _met belongs to
        self._met: dict[str, tuple[Tensor, Tensor]] = {}  # for each field: expanded queries (Q D), their cosines (M Q)

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        sample = RowSample(self.needs, self.memory, self.seed)
        for block in train:
            sample.add(block)
        self._sample = {field: unit(rows) for field, rows in sample.rows.items()}

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        if self._asked is not query:  # every block of training rows comes with the same queries
            self._met = {field: self._meet(field, query[field]) for field in self.needs}
            self._asked = query
        z = []
        for field in self.needs:
            moved, reference = self._met[field]
            score = standardised(cosine([train[field]], [moved]), reference)
            known = train[field].any(1, keepdim=True) & moved.any(1)
            z.append(torch.where(known, score, 0))
        return (torch.logsumexp(torch.stack(z), dim=0) - math.log(len(z))).float()

    def _meet(self, field: str, query: Tensor) -> tuple[Tensor, Tensor]:
        rows, query = self._sample[field], unit(query)
        moved = expanded(query, rows, self.sharpness, self.weight) if self.weight else query
        moved = torch.where(query.any(1, keepdim=True), moved, 0)
        return moved, cosine([rows], [moved])
