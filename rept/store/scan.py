"""What whole shards there are in a store's folder, whether or not it is finished, and which rows they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from rept.distributed.collectives import gathered, process
from rept.store.shards import DamagedStore, ShardName, read_shard
from rept.types import Side


@dataclass(frozen=True)
class Found:
    """What there is to know of a whole shard in the folder."""

    path: Path
    name: ShardName
    fingerprint: str
    row: np.ndarray  # (n) int64
    status: np.ndarray  # (n) uint8
    blocks: dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of its datasets for each key
    norms: dict[str, float]  # sum of the norms of each key's rows

    @classmethod
    def read(cls, path: Path, side: Side, fingerprint: str | None) -> Found:
        """Raises DamagedStore: the shard is damaged or belongs elsewhere."""
        shard = read_shard(path, side, fingerprint)
        arrays = {key.path: unit for key, unit in shard.unit.items()}
        arrays |= {f"norm/{key.path}": norm for key, norm in shard.norm.items()}
        name = ShardName.parse(path)
        assert name is not None  # or read_shard had raised
        return cls(
            path=path,
            name=name,
            fingerprint=shard.fingerprint,
            row=shard.row.copy(),  # a view would keep the whole file mapped
            status=shard.status.copy(),
            blocks={path: (array.shape, array.dtype) for path, array in arrays.items()},
            norms={f"norm/{key.path}": float(norm.sum(dtype=np.float64)) for key, norm in shard.norm.items()},
        )


def scan(folder: Path, side: Side, fingerprint: str | None = None, together: bool = False) -> list[Found]:
    """All whole shards of a side, in shard order (by rank, then number).

    Where a run was killed while it topped up a shard, the fuller one of the two stands for both.

    Args:
        together: all ranks of the run call this, and each reads its share: first of all what it wrote itself.

    Raises:
        DamagedStore: a shard is damaged or belongs elsewhere.
    """
    rank, ranks = process() if together else (0, 1)
    own = [path for path in shard_paths(folder, side) if _writer(path) % ranks == rank]
    found = _read_all(own, side, fingerprint)
    return sorted(chain(*gathered(found)), key=lambda one: one.name) if together else found


def _writer(path: Path) -> int:
    """The rank that wrote a file; 0 for what no rank did, which is told when it is read."""
    name = ShardName.parse(path)
    return name.rank if name else 0


def _read_all(paths: Sequence[Path], side: Side, fingerprint: str | None) -> list[Found]:
    found: dict[tuple[int, int], Found] = {}
    for path in paths:
        try:
            one = Found.read(path, side, fingerprint)
        except DamagedStore:
            if path.exists():
                raise
            continue  # another rank has just topped it up; its rows are in the new one
        fingerprint = one.fingerprint
        twin = found.get((one.name.rank, one.name.number))
        if twin is None or len(twin.row) < len(one.row):
            found[one.name.rank, one.name.number] = one
    return [found[place] for place in sorted(found)]


def shard_paths(folder: Path, side: Side) -> list[Path]:
    """All that looks like a shard, whole or not; unfinished files (``.partial``) do not."""
    return sorted((folder / side / "shards").glob("[!.]*.h5"))


def positions(found: Sequence[Found], rows: int, where: Path) -> np.ndarray:
    """Where each row 0..rows-1 stands when the shards are laid end to end; -1 where it is missing.

    Raises:
        DamagedStore: a row is there twice, or is none of the data's.
    """
    position = np.full(rows, -1, dtype=np.int64)
    start = 0
    for one in found:
        row = one.row
        if len(row) and not 0 <= row.min() <= row.max() < rows:
            raise DamagedStore(one.path, f"holds rows {row.min()} to {row.max()}, but the data have {rows:,}")
        twice = row[position[row] >= 0]
        if twice.size or len(np.unique(row)) < len(row):
            raise DamagedStore(one.path, f"holds rows that are in {where} already")
        position[row] = np.arange(start, start + len(row))
        start += len(row)
    return position
