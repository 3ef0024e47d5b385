"""Reads which rows the shards in a store's folder have, whether or not the store is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from rept.distributed.collectives import gathered, process
from rept.store.shards import DamagedStore, ShardName, read_shard, shard_paths
from rept.types import Side


@dataclass(frozen=True)
class ShardSummary:
    """A shard in the folder, without its signatures."""

    path: Path
    name: ShardName
    fingerprint: str
    row: np.ndarray  # (n) int64
    status: np.ndarray  # (n) uint8
    blocks: dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of its datasets for each key
    norms: dict[str, float]  # sum of the norms of each key's rows

    @classmethod
    def read(cls, path: Path, side: Side, fingerprint: str | None) -> ShardSummary:
        """Raises DamagedStore: the shard is damaged or belongs elsewhere."""
        shard = read_shard(path, side, fingerprint)
        norms = {path: norm for path, norm in shard.columns.items() if path.startswith("norm/")}
        name = ShardName.parse(path)
        assert name is not None  # or read_shard had raised
        return cls(
            path=path,
            name=name,
            fingerprint=shard.fingerprint,
            row=shard.row.copy(),  # a view would keep the whole file mapped
            status=shard.status.copy(),
            blocks={path: (column.shape, column.dtype) for path, column in shard.columns.items() if "/" in path},
            norms={path: float(norm.sum(dtype=np.float64)) for path, norm in norms.items()},
        )


def scan(folder: Path, side: Side, fingerprint: str | None = None, together: bool = False) -> list[ShardSummary]:
    """All shards of a side, in shard order (by rank, then number).

    A run that was killed while it replaced a short shard by a longer one leaves both; the longer one counts.

    Args:
        together: all ranks of the run call this, and each reads the shards that it wrote itself.

    Raises:
        DamagedStore: a shard is damaged or belongs elsewhere.
    """
    rank, ranks = process() if together else (0, 1)
    found: dict[tuple[int, int], ShardSummary] = {}
    for path in shard_paths(folder, side):
        name = ShardName.parse(path)
        if name is not None and name.rank % ranks != rank:
            continue
        try:
            shard = ShardSummary.read(path, side, fingerprint)
        except DamagedStore:
            if path.exists():
                raise
            continue  # another rank has just replaced it by a longer one, which has its rows
        fingerprint = shard.fingerprint
        other = found.get(shard.name[:2])
        if other is None or len(other.row) < len(shard.row):
            found[shard.name[:2]] = shard
    own = list(found.values())
    return sorted(chain(*(gathered(own) if together else [own])), key=lambda shard: shard.name)


def positions(shards: Sequence[ShardSummary], rows: int, where: Path) -> np.ndarray:
    """The position of each row 0..rows-1 in the concatenated shards; -1 where it is missing.

    Raises DamagedStore if a row occurs twice, or is not in the data.
    """
    position = np.full(rows, -1, dtype=np.int64)
    start = 0
    for shard in shards:
        row = shard.row
        if len(row) and not 0 <= row.min() <= row.max() < rows:
            raise DamagedStore(shard.path, f"has rows {row.min()} to {row.max()}, but the data have {rows:,}")
        if (position[row] >= 0).any() or len(np.unique(row)) < len(row):
            raise DamagedStore(shard.path, f"has rows that are in {where} already")
        position[row] = np.arange(start, start + len(row))
        start += len(row)
    return position
