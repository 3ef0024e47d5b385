"""How far a training row stands out from the others over several fields, for queries expanded by their neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rept.errors import UsageError
from rept.types import FIELDS
from rept.utils.tensors import unit
from scorers.base import Scorer
from scorers.cosine import cosine

_ROUNDING = 1e-6  # a deviation of cosines below this is rounding error


def standardised(score: Tensor, reference: Tensor) -> Tensor:
    """``(s - mean) / deviation`` of scores (N Q), with each query's mean and deviation over reference scores (M Q).

    0 where a query's reference scores are all equal up to rounding.
    """
    deviation, mean = torch.std_mean(reference.double(), dim=0, correction=0)
    return torch.where(deviation > _ROUNDING, (score - mean) / deviation, 0)


def expanded(query: Tensor, rows: Tensor, sharpness: float, weight: float) -> Tensor:
    """Queries (Q D) moved towards the training rows (M D) that they resemble most; both of norm 1, or zero.

    ``q' = q + weight * unit(sum_i softmax_i(sharpness * z_i) x_i)``, where ``z_i`` are the standardised cosines of q.
    A soft form of pseudo-relevance feedback (Rocchio 1971): what several near rows share counts more than what only
    the query has.
    """
    similarity = rows @ query.T  # (M Q)
    share = torch.softmax(sharpness * standardised(similarity, similarity), dim=0).to(rows.dtype)
    return query + weight * unit(share.T @ rows)


class Standout(Scorer):
    """``s = log(1/F sum_f exp z_f)``, where ``z_f`` is the cosine in field f in standard deviations over training rows.

    A cosine of 0.9 is high in one field and ordinary in another. Standardised for each query (by mean and deviation of
    its cosines over the training rows), fields can be compared, and the field in which the row stands out most
    dominates the sum of exponentials: a trigger shows at the last prompt token alone, a false fact in the mean of the
    text. Before that, each field's query is `expanded` by its neighbours among the training rows.

    Args:
        fields: the blocks that are compared.
        sharpness: of the softmax over neighbours, in 1 / standard deviations.
        weight: of the neighbours relative to the query itself; 0: the query alone.
        memory: training rows that are kept for neighbours, means and deviations: a uniform sample if there are more.
        seed: of that sample.

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
        self.fit_rows, self.fit_seed = memory, seed
        self.sharpness, self.weight = sharpness, weight
        self._sample: dict[str, Tensor] = {}  # unit rows (M D) of each field
        self._query: Mapping[str, Tensor] | None = None  # the queries that _expanded belongs to
        self._expanded: dict[str, tuple[Tensor, Tensor]] = {}  # by field: queries (Q D) and their cosines (M Q)

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        blocks = list(train)
        self._sample = {field: unit(torch.cat([block[field] for block in blocks])) for field in self.needs}

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        if self._query is not query:  # every block of training rows comes with the same queries
            self._expanded = {field: self._expand(field, query[field]) for field in self.needs}
            self._query = query
        z = []
        for field in self.needs:
            moved, reference = self._expanded[field]
            score = standardised(cosine([train[field]], [moved]), reference)
            z.append(torch.where(train[field].any(1, keepdim=True), score, 0))  # a zero query's cosines are 0
        return (torch.logsumexp(torch.stack(z), dim=0) - math.log(len(z))).float()

    def _expand(self, field: str, query: Tensor) -> tuple[Tensor, Tensor]:
        rows, query = self._sample[field], unit(query)
        moved = expanded(query, rows, self.sharpness, self.weight) if self.weight else query
        moved = torch.where(query.any(1, keepdim=True), moved, 0)
        return moved, cosine([rows], [moved])
