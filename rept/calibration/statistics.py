"""Collects, block by block, the statistics by which a calibration compares queries with reference queries.

In each field, rows and queries are scaled to norm 1, and the mean of the training rows is subtracted; ``c`` is the
cosine of what is left, averaged over sites and layers. With mean ``m_i``, maximum ``h_i`` and standard deviation
``d_i`` of the cosines of row i with the reference queries that it is compared with,

    standing of i for q = (c_i(q) - m_i) / d_i      robust where some references are culprits themselves
    excess of i for q   = (c_i(q) - h_i) / d_i      more sensitive where none is

For a reference, m, h and d are those of the other references. The run's scorer is not used: scores that are
standardised for each query, as those of `scorers.standout`, do not show how near a query's best row is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.calibration.references import References
from rept.ranking.topk import Hits, TopK
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.tensors import unit

QUANTITIES = ("cosine", "standing", "excess")
MIN_REFERENCES = 10  # that a row must be compared with, or its standings and excesses are 0
TOP_ROWS = 5  # rows with the highest values, over which a query's statistic is the mean
_ROUNDING = 1e-6  # a deviation of cosines, or the norm of a row without the mean, is rounding error below this


@dataclass(frozen=True)
class TopRows:
    """The rows with the highest values of a quantity in a field, for each query (Q) and each reference (R)."""

    query: Hits
    reference: Hits

    @classmethod
    def merged(cls, parts: Sequence[TopRows], top_k: int) -> TopRows:
        """Those of all processes."""
        return cls(
            Hits.merged([part.query for part in parts], top_k + TOP_ROWS),
            Hits.merged([part.reference for part in parts], TOP_ROWS),
        )


@dataclass(frozen=True)
class PartialStatistics:
    """The statistics of the rows that one process has read."""

    top: Mapping[str, Mapping[str, TopRows]]  # by field, then by quantity
    rows: int
    compared: Tensor  # (R) how many of these rows each reference is compared with


class StatisticsCollector:
    """Collects what `rept.calibration.decision.decide` needs; a `rept.ranking.rank.Watch`.

    Args:
        train: the store whose blocks it will be called with.
        queries: fields (Q D); their keys are the ones that are compared.
        references: they have the same fields.
        top_k: hits of each query that will be decided on.
        device: where the blocks are.
    """

    def __init__(
        self,
        train: AttributionStore,
        queries: Mapping[Key, Tensor],
        references: References,
        top_k: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._excluded, self._device = references.excluded, device
        self._rows, self._compared = 0, torch.zeros(len(references), dtype=torch.int64)
        fields: dict[str, dict[Key, _Directions]] = {}
        for key, mean in mean_unit_rows(train, list(queries)).items():
            sides = (queries[key].to(device), references.fields[key].to(device))
            fields.setdefault(key.field, {})[key] = _Directions(mean.to(device), *sides)
        count = len(next(iter(queries.values())))
        self._fields = {name: _Field(own, count, len(references), top_k, device) for name, own in fields.items()}

    def __call__(self, row: Tensor, blocks: Mapping[Key, Tensor]) -> None:
        excluded = self._excluded(row)
        self._rows += len(row)
        self._compared += (~excluded).sum(0)
        for field in self._fields.values():
            field.add(row.to(self._device), blocks, excluded.to(self._device))

    def collected(self) -> PartialStatistics:
        top = {name: field.top_rows() for name, field in self._fields.items()}
        return PartialStatistics(top, self._rows, self._compared)


class _Directions:
    """Queries and references at one key, as unit rows without the mean of the training rows."""

    def __init__(self, mean: Tensor, queries: Tensor, references: Tensor) -> None:
        self._mean = mean
        self._queries, self._references = self._centred(queries), self._centred(references)

    def cosines(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n Q) with the queries and (n R) with the references, of rows (n D)."""
        rows = self._centred(rows)
        return rows @ self._queries.T, rows @ self._references.T

    def _centred(self, block: Tensor) -> Tensor:
        rows = unit(block) - self._mean
        norm = rows.norm(dim=1, keepdim=True)
        return torch.where(block.any(1, keepdim=True) & (norm > _ROUNDING), rows / norm, 0)


class _Field:
    """One field of queries and references, at all its sites and layers."""

    def __init__(
        self, at: Mapping[Key, _Directions], queries: int, references: int, top_k: int, device: torch.device | str
    ) -> None:
        self._at = at
        # `decide` leaves out up to top_k hits one by one, and needs TOP_ROWS others.
        self._query = {name: TopK(queries, top_k + TOP_ROWS, device=device) for name in QUANTITIES}
        self._reference = {name: TopK(references, TOP_ROWS, device=device) for name in QUANTITIES}

    def add(self, row: Tensor, blocks: Mapping[Key, Tensor], excluded: Tensor) -> None:
        """Adds the rows (n) with their fields, and which references (n R) they are not compared with."""
        cosines = [directions.cosines(blocks[key]) for key, directions in self._at.items()]
        query, reference = (torch.stack(side).mean(0) for side in zip(*cosines, strict=True))
        of_queries, of_references = standings(query, reference, excluded)
        for name, values in zip(QUANTITIES, (query, *of_queries), strict=True):
            self._query[name].add(row, values)
        for name, values in zip(QUANTITIES, (reference, *of_references), strict=True):
            self._reference[name].add(row, values.masked_fill(excluded, -torch.inf))

    def top_rows(self) -> dict[str, TopRows]:
        return {name: TopRows(self._query[name].hits(), self._reference[name].hits()) for name in QUANTITIES}


def standings(
    query: Tensor, reference: Tensor, excluded: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Standing and excess (n Q) of rows for queries, and (n R) for references, from their cosines (n Q) and (n R).

    0 where all references are equally similar to a row, or fewer than `MIN_REFERENCES` are compared with it.

    Args:
        excluded: (n R) true where a row is not compared with a reference; the results have no meaning there.
    """
    query, reference = query.double(), reference.double()  # a variance may be far smaller than its terms
    count = (~excluded).sum(1, keepdim=True)
    mean = reference.masked_fill(excluded, 0).sum(1, keepdim=True) / count.clamp(min=1)
    difference = (reference - mean).masked_fill(excluded, 0)
    square = difference.square().sum(1, keepdim=True)
    compared = torch.nn.functional.pad(reference.masked_fill(excluded, -torch.inf), (0, 1), value=-torch.inf)
    highest, second = compared.topk(2, dim=1).values.T[..., None]
    # Without one of n values, which differs from the mean by x, the mean moves by -x / (n - 1).
    others = (count - 1).clamp(min=1)
    from_others = difference * count / others
    variance_of_others = (square - difference * from_others).clamp(min=0) / others
    above_others = reference - torch.where(reference >= highest, second, highest)
    enough = count >= MIN_REFERENCES
    variance, variance_of_others = enough * square / count.clamp(min=1), enough * variance_of_others
    return (
        (_in_deviations(query - mean, variance), _in_deviations(query - highest, variance)),
        (_in_deviations(from_others, variance_of_others), _in_deviations(above_others, variance_of_others)),
    )


def _in_deviations(difference: Tensor, variance: Tensor) -> Tensor:
    deviation = variance.sqrt()
    return torch.where(deviation > _ROUNDING, difference / deviation, 0).float()


def mean_unit_rows(train: AttributionStore, keys: Sequence[Key]) -> dict[Key, Tensor]:
    """The mean (1 D) of each key's rows, each scaled to norm 1, over evenly spaced rows."""
    rows = train.read(train.evenly_spaced(), keys, together=True)
    return {key: unit(rows[key]).mean(0, keepdim=True) for key in keys}
