"""How near queries and reference queries come to training rows, and how far that stands out: gathered block by block.

In each field, rows and queries are scaled to norm 1, the mean of the training rows is taken away, and the cosine ``c``
of what is left is looked at, its mean over sites and layers where there are several. With mean ``m_i`` and deviation
``d_i`` of row i's cosines with the reference queries that it is compared with,

    standing of i for q = (c_i(q) - m_i) / d_i

For a reference itself the background is that of the others. The scorer has no say in this: scores that are standardised
for each query, as those of `scorers.standout`, do not tell whether a query's best row is near or far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rept.signature import Key
from rept.store import AttributionStore
from rept.topk import Hits, TopK

if TYPE_CHECKING:
    from rept.references import References

DEPTH = 5  # rows whose mean says how near a query comes, and how far its rows stand out
SAMPLE = 4096  # training rows whose mean is taken away
_ALIKE = 1e-6  # a deviation of cosines below this is rounding


@dataclass(frozen=True)
class Nearest:
    """The rows of one field that come nearest to, and stand out furthest for, each query (Q) and reference (R)."""

    near: Hits
    standing: Hits
    reference_near: Hits
    reference_standing: Hits

    @classmethod
    def merged(cls, shares: Sequence[Nearest]) -> Nearest:
        """Those of all processes together."""
        kept = sum(share.near.row.shape[1] for share in shares)
        found = {field.name: [getattr(share, field.name) for share in shares] for field in fields(cls)}
        return cls(**{name: Hits.merged(parts, kept) for name, parts in found.items()})


class Resemblance:
    """Gathers what `rept.calibration.decide` needs of the blocks of a store; called with the rows and fields of each.

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

    def __call__(self, row: Tensor, blocks: Mapping[Key, Tensor]) -> None:
        out = self._left_out(row).to(self._device)
        for field in self._fields.values():
            field.add(row.to(self._device), blocks, out)

    def share(self) -> dict[str, Nearest]:
        """What one process knows of each field, to be gathered."""
        return {name: field.nearest() for name, field in self._fields.items()}


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
        return torch.where(block.any(1, keepdim=True), normalize(_unit(block) - self._centre, dim=1), 0)


class _Field:
    """One field of all queries and references, over its sites and layers."""

    def __init__(
        self, parts: Mapping[Key, _Part], queries: int, references: int, top_k: int, device: torch.device | str
    ) -> None:
        self._parts = parts
        # So many, because every step of `decide` leaves out one more of the top_k hits, and looks at DEPTH others.
        self._near, self._standing = (TopK(queries, top_k + DEPTH, device=device) for _ in range(2))
        self._own_near, self._own_standing = (TopK(references, DEPTH, device=device) for _ in range(2))

    def add(self, row: Tensor, blocks: Mapping[Key, Tensor], out: Tensor) -> None:
        """Takes the rows (n) with their fields, and which references (n R) they are not compared with."""
        cosines = [part.cosines(blocks[key]) for key, part in self._parts.items()]
        asked, known = (torch.stack(side).mean(0) for side in zip(*cosines, strict=True))
        standing, own = standings(asked, known, out)
        self._near.add(row, asked)
        self._standing.add(row, standing)
        self._own_near.add(row, known.masked_fill(out, -torch.inf))
        self._own_standing.add(row, own.masked_fill(out, -torch.inf))

    def nearest(self) -> Nearest:
        return Nearest(*(top.hits() for top in (self._near, self._standing, self._own_near, self._own_standing)))


def standings(asked: Tensor, known: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Standings (n Q) of rows for queries, from cosines (n Q), and (n R) for references, from theirs (n R).

    0 where all references resemble a row to the same degree, or none is compared with it.

    Args:
        out: (n R) true where a row is not compared with a reference; that standing says nothing.
    """
    asked, known = asked.double(), known.double()  # what is left of a variance may be far smaller than itself
    count = (~out).sum(1, keepdim=True)
    mean = known.masked_fill(out, 0).sum(1, keepdim=True) / count.clamp(min=1)
    difference = (known - mean).masked_fill(out, 0)
    square = difference.square().sum(1, keepdim=True)
    # With n values and without the one that differs by x, the mean moves by -x / (n - 1).
    others = (count - 1).clamp(min=1)
    moved = difference * count / others
    without = (square - difference * moved).clamp(min=0)
    return _ratio(asked - mean, square / count.clamp(min=1)), _ratio(moved, without / others)


def _ratio(difference: Tensor, variance: Tensor) -> Tensor:
    deviation = variance.sqrt()
    return torch.where(deviation > _ALIKE, difference / deviation, 0).float()


def centres(train: AttributionStore, keys: Sequence[Key]) -> dict[Key, Tensor]:
    """The mean (1 D) of each field's rows, scaled to norm 1 before; over rows evenly spread, at most so many."""
    step = -(-len(train.attributed) // SAMPLE)
    rows = train.read(train.attributed[::step], keys)
    return {key: _unit(rows[key]).mean(0, keepdim=True) for key in keys}


def _unit(block: Tensor) -> Tensor:
    """Rows scaled to norm 1; in float64 on the way: squares of small gradients underflow."""
    return normalize(block.double(), dim=1, eps=1e-300).float()
