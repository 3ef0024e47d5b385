"""How near queries and reference queries come to training rows, and how far that stands out: gathered block by block.

In each field, rows and queries are scaled to norm 1, the mean of the training rows is taken away, and the cosine ``c``
of what is left is looked at, its mean over sites and layers where there are several. With mean ``m_i``, highest ``h_i``
and deviation ``d_i`` of row i's cosines with the reference queries that it is compared with,

    standing of i for q = (c_i(q) - m_i) / d_i      bears references that are culprits themselves
    excess of i for q   = (c_i(q) - h_i) / d_i      tells more where there are none

For a reference itself the background is that of the others. The scorer has no say in this: scores that are standardised
for each query, as those of `scorers.standout`, do not tell whether a query's best row is near or far.
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

LOOKED_AT = ("near", "standing", "excess")
FEWEST = 10  # references with which a row must be compared for its standings to say something
DEPTH = 5  # rows whose mean says how near a query comes, and how far its rows stand out
_ALIKE = 1e-6  # a deviation of cosines, or what is left of a row without the mean, is rounding below this


@dataclass(frozen=True)
class Highest:
    """The rows that are highest in something for each query (Q) and each reference (R)."""

    query: Hits
    reference: Hits

    @classmethod
    def merged(cls, shares: Sequence[Highest], top_k: int) -> Highest:
        """Those of all processes together, as many as each of them has kept."""
        return cls(
            Hits.merged([share.query for share in shares], top_k + DEPTH),
            Hits.merged([share.reference for share in shares], DEPTH),
        )


@dataclass(frozen=True)
class Share:
    """What one process knows, to be gathered."""

    highest: Mapping[str, Mapping[str, Highest]]  # by field, and by what is looked at: see `LOOKED_AT`
    rows: int
    compared: Tensor  # (R) how many of these rows each reference is compared with


class Resemblance:
    """Gathers what `rept.calibration.decision.decide` needs of the blocks of a store; called with the rows and fields of each.

    Args:
        train: the store whose blocks are to come.
        queries: fields (Q D); their keys are the ones that are looked at.
        references: they have the same fields.
        top_k: hits of each query that are to be decided on.
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
        self._left_out, self._device = references.left_out, device
        centre, known = centres(train, list(queries)), references.of(queries)
        parts: dict[str, dict[Key, _Part]] = {}
        for key, block in queries.items():
            part = _Part(block.to(device), known[key].to(device), centre[key].to(device))
            parts.setdefault(key.field, {})[key] = part
        self._fields = {name: _Field(own, len(block), len(references), top_k, device) for name, own in parts.items()}
        self._rows, self._compared = 0, torch.zeros(len(references), dtype=torch.int64)

    def __call__(self, row: Tensor, blocks: Mapping[Key, Tensor]) -> None:
        left_out = self._left_out(row)
        self._rows += len(row)
        self._compared += (~left_out).sum(0)
        for field in self._fields.values():
            field.add(row.to(self._device), blocks, left_out.to(self._device))

    def share(self) -> Share:
        highest = {name: field.highest() for name, field in self._fields.items()}
        return Share(highest, self._rows, self._compared)


class _Part:
    """Queries and references of a field at one site and layer."""

    def __init__(self, queries: Tensor, references: Tensor, centre: Tensor) -> None:
        self._centre = centre
        self._asked, self._known = self._centred(queries), self._centred(references)

    def cosines(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n Q) and (n R), of rows (n D)."""
        rows = self._centred(rows)
        return rows @ self._asked.T, rows @ self._known.T

    def _centred(self, block: Tensor) -> Tensor:
        rows = unit(block) - self._centre
        norm = rows.norm(dim=1, keepdim=True)
        return torch.where(block.any(1, keepdim=True) & (norm > _ALIKE), rows / norm, 0)


class _Field:
    """One field of all queries and references, over its sites and layers."""

    def __init__(
        self, parts: Mapping[Key, _Part], queries: int, references: int, top_k: int, device: torch.device | str
    ) -> None:
        self._parts = parts
        # So many, because every step of `decide` leaves out one more of the top_k hits, and looks at DEPTH others.
        self._asked = {name: TopK(queries, top_k + DEPTH, device=device) for name in LOOKED_AT}
        self._known = {name: TopK(references, DEPTH, device=device) for name in LOOKED_AT}

    def add(self, row: Tensor, blocks: Mapping[Key, Tensor], left_out: Tensor) -> None:
        """Takes the rows (n) with their fields, and which references (n R) they are not compared with."""
        cosines = [part.cosines(blocks[key]) for key, part in self._parts.items()]
        asked, known = (torch.stack(side).mean(0) for side in zip(*cosines, strict=True))
        against, among = standings(asked, known, left_out)
        for name, ours, theirs in zip(LOOKED_AT, (asked, *against), (known, *among), strict=True):
            self._asked[name].add(row, ours)
            self._known[name].add(row, theirs.masked_fill(left_out, -torch.inf))

    def highest(self) -> dict[str, Highest]:
        return {name: Highest(self._asked[name].hits(), self._known[name].hits()) for name in LOOKED_AT}


def standings(asked: Tensor, known: Tensor, left_out: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Standing and excess (n Q) of rows for queries, from cosines (n Q), and (n R) for references, from theirs (n R).

    0 where all references resemble a row to the same degree, or fewer than `FEWEST` are compared with it.

    Args:
        left_out: (n R) true where a row is not compared with a reference; what is found there says nothing.
    """
    asked, known = asked.double(), known.double()  # what is left of a variance may be far smaller than itself
    count = (~left_out).sum(1, keepdim=True)
    mean = known.masked_fill(left_out, 0).sum(1, keepdim=True) / count.clamp(min=1)
    difference = (known - mean).masked_fill(left_out, 0)
    square = difference.square().sum(1, keepdim=True)
    compared = torch.nn.functional.pad(known.masked_fill(left_out, -torch.inf), (0, 1), value=-torch.inf)
    highest, second = compared.topk(2, dim=1).values.split(1, dim=1)
    # With n values and without the one that differs by x, the mean moves by -x / (n - 1).
    others = (count - 1).clamp(min=1)
    moved = difference * count / others
    of_others = (square - difference * moved).clamp(min=0) / others
    above = known - torch.where(known >= highest, second, highest)
    enough = count >= FEWEST  # else there is no deviation, and so no standing
    of_all, of_others = enough * square / count.clamp(min=1), enough * of_others
    return (
        (_ratio(asked - mean, of_all), _ratio(asked - highest, of_all)),
        (_ratio(moved, of_others), _ratio(above, of_others)),
    )


def _ratio(difference: Tensor, variance: Tensor) -> Tensor:
    deviation = variance.sqrt()
    return torch.where(deviation > _ALIKE, difference / deviation, 0).float()


def centres(train: AttributionStore, keys: Sequence[Key]) -> dict[Key, Tensor]:
    """The mean (1 D) of each field's rows, scaled to norm 1 before, over evenly spaced rows."""
    rows = train.read(train.evenly_spaced(), keys)
    return {key: unit(rows[key]).mean(0, keepdim=True) for key in keys}
