"""The rows of a shard that is not full yet."""

from __future__ import annotations

import numpy as np

from rept.store.shards import Shard
from rept.types import Key, Side


class OpenShard:
    """Gathers the rows of batches in one growing array for each column of a shard.

    The small arrays of the batches themselves, kept until the shard is full, would lie between the model's larger
    temporary ones, so that the allocator could neither reuse nor return the memory around them: measured, 2.6 kB for
    each row that takes 540 bytes.
    """

    def __init__(self, side: Side, fingerprint: str) -> None:
        self._side, self._fingerprint = side, fingerprint
        self._rows = 0
        self._row, self._status = _Column((), np.int64), _Column((), np.uint8)
        self._unit: dict[Key, _Column] = {}
        self._norm: dict[Key, _Column] = {}

    def __len__(self) -> int:
        return self._rows

    def append(self, part: Shard) -> None:
        """Copies rows; those without signatures get zeros where others have some.

        Raises:
            ValueError: the rows have other blocks than those before them.
        """
        if part.unit and not self._unit:
            self._unit = {key: _Column(block.shape[1:], block.dtype) for key, block in part.unit.items()}
            self._norm = {key: _Column((), np.float32) for key in part.unit}
        got = {key: (block.shape[1:], block.dtype) for key, block in part.unit.items()}
        expected = {key: (column.array.shape[1:], column.array.dtype) for key, column in self._unit.items()}
        if got and got != expected:
            raise ValueError(f"expected all signatures to have the blocks {expected}, but got {got}")
        start, self._rows = self._rows, self._rows + len(part)
        self._row.put(part.row, start, self._rows)
        self._status.put(part.status, start, self._rows)
        for key in self._unit:
            self._unit[key].put(part.unit.get(key, 0), start, self._rows)
            self._norm[key].put(part.norm.get(key, 0), start, self._rows)

    def shard(self) -> Shard:
        """All rows so far, not copied."""
        return Shard(
            self._side,
            self._fingerprint,
            self._row.array[: self._rows],
            self._status.array[: self._rows],
            unit={key: column.array[: self._rows] for key, column in self._unit.items()},
            norm={key: column.array[: self._rows] for key, column in self._norm.items()},
        )


class _Column:
    """An array whose first axis grows; doubled, so that rows are copied about once."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self.array = np.empty((0, *shape), dtype)

    def put(self, values: np.ndarray | int, start: int, end: int) -> None:
        """Sets the rows from ``start`` to ``end``; those before ``start`` that were never set are zero."""
        if len(self.array) < end:
            grown = np.empty((max(end, 2 * len(self.array)), *self.array.shape[1:]), self.array.dtype)
            grown[:start] = self.array[:start] if len(self.array) else 0
            self.array = grown
        self.array[start:end] = values
