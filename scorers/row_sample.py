"""A uniform sample of training rows that are seen block by block: all of them, as long as they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RowSample:
    """Reservoir sampling (Vitter 1985, algorithm R) of fields (n D).

    Args:
        fields: what is kept of each row.
        size: rows that are kept; up to so many, none is left out.
        seed: of the choice beyond that.
    """

    def __init__(self, fields: Sequence[str], size: int, seed: int = 0) -> None:
        self.fields = tuple(fields)
        self.size = size
        self.seen = 0
        self.rows: dict[str, Tensor] = {}  # each (min(seen, size) D)
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, block: Mapping[str, Tensor]) -> None:
        """Takes in rows; every row seen so far has the same chance to be kept."""
        count = len(block[self.fields[0]])
        fresh = min(count, max(0, self.size - self.seen))
        if fresh:
            for field in self.fields:
                kept = self.rows.get(field, block[field][:0])
                self.rows[field] = torch.cat([kept, block[field][:fresh]])
        number = torch.arange(self.seen + fresh, self.seen + count)  # of each later row, from 0
        place = (torch.rand(len(number), generator=self._generator, dtype=torch.float64) * (number + 1)).long()
        # The last row drawn for a place is the one that stays there.
        winner = {p: i for i, p in enumerate(place.tolist()) if p < self.size}
        if winner:
            target, source = torch.tensor(list(winner)), torch.tensor(list(winner.values())) + fresh
            for field in self.fields:
                self.rows[field][target] = block[field][source]
        self.seen += count
