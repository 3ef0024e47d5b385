"""AttributionStore: reads the signatures of one side of a run from its shards.

A store is a folder with ``train/`` and ``query/``, each with ``shards/*.h5`` and ``index.h5``, and ``digests.json``,
which is written last. HDF5 opens no file before its digest is checked, so damage is reported and never used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from rept.distributed.collectives import gathered, process
from rept.errors import UsageError
from rept.store.index import write_index
from rept.store.manifest import Listing, check_listed, finished_side, open_index
from rept.store.scan import positions, scan
from rept.store.shards import DamagedStore, Shard, is_attributed, keys_below, paths_of, read_shard, shard_paths
from rept.types import Key, Side, Status
from rept.utils.text import counted


class Block(NamedTuple):
    """Some attributed rows of a store, in its order."""

    row: Tensor  # (n) row numbers
    fields: dict[Key, Tensor]  # each (n D) float32, in the original scale


class AttributionStore:
    """A finished side of a run's ``store`` folder, open for reading.

    Raises:
        DamagedStore: a file is damaged, missing, or does not belong here. Names and sizes of the shards are checked
            now, their content whenever they are read.
        UsageError: the side is not finished, or none of its rows could be attributed.
    """

    def __init__(self, folder: str | Path, side: Side) -> None:
        self.folder, self.side = Path(folder), side
        entry = finished_side(self.folder, side)
        self.rows = entry.rows
        self.fingerprint = entry.fingerprint
        self._shards = entry.shards
        self.bytes = sum(shard.bytes for shard in entry.shards)  # on the disk
        self._end = np.cumsum([0, *(shard.rows for shard in entry.shards)])[1:]  # position after each shard's last row
        with self._index() as index:
            self.keys = keys_below(index["norm"]) if "norm" in index else []
        if not self.keys:
            counts = Counter(Status(code).reason for code in self.status)
            found = counted(counts) or "no rows"
            raise UsageError(f"Expected {self.folder / side} to have a row that could be attributed, but got: {found}.")

    @property
    def shard_names(self) -> list[str]:
        """The shards' file names, which contain the digests of their content."""
        return [shard.name for shard in self._shards]

    @cached_property
    def status(self) -> np.ndarray:
        """(N) uint8 by row number, see `Status`."""
        with self._index() as index:
            status: np.ndarray = index["status"][()]
        return status

    @cached_property
    def attributed(self) -> np.ndarray:
        """The numbers of the rows that have a signature, ascending."""
        return np.flatnonzero(is_attributed(self.status))

    @property
    def attributed_in_order(self) -> np.ndarray:
        """The same numbers in the order of `blocks`."""
        with self._index() as index:
            row = np.asarray(index["row"])
        return np.asarray(row[is_attributed(self.status[row])])

    def evenly_spaced(self, most: int = 4096) -> np.ndarray:
        """The numbers of at most ``most`` attributed rows, evenly spaced: a sample for means and word counts."""
        return self.attributed[:: -(-len(self.attributed) // most)]

    def blocks(
        self, keys: Sequence[Key], rows_per_block: int = 4096, part: tuple[int, int] = (0, 1), reuse: bool = False
    ) -> Iterator[Block]:
        """The attributed rows, block by block, each block from one shard.

        Args:
            keys: whose fields are read.
            rows_per_block: at most.
            part: (i, n) gives every n-th shard, from the i-th: the share of the i-th of n processes.
            reuse: the fields of each block are overwritten by the next: faster, as no new memory is touched.

        Raises:
            DamagedStore: a shard is damaged.
        """
        self._check(keys)
        buffers: dict[Key, Tensor] = {}
        for number in range(part[0], len(self._shards), part[1]):
            shard = self._shard(number)
            if not shard.keys:
                continue
            if reuse and not buffers:
                buffers = {key: torch.empty(rows_per_block, shard.columns[key.path].shape[1]) for key in keys}
            for start in range(0, len(shard), rows_per_block):
                block = slice(start, start + rows_per_block)
                attributed = is_attributed(shard.status[block])
                index = block if attributed.all() else start + np.flatnonzero(attributed)
                row = torch.from_numpy(shard.row[index].copy())  # a view would keep the whole shard mapped
                if len(row):
                    yield Block(row, {key: _restore(shard, key, index, buffers.get(key)) for key in keys})

    def read(self, rows: Sequence[int] | np.ndarray, keys: Sequence[Key], together: bool = False) -> dict[Key, Tensor]:
        """The fields (n D) of some rows, in the given order; zeros for rows that were set aside.

        Args:
            rows: row numbers, also several times the same.
            together: all ranks of the run call this, and share the reading as they share `blocks`.

        Raises:
            DamagedStore: a shard is damaged.
            IndexError: there is no such row.
        """
        self._check(keys)
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"expected rows from 0 to {self.rows - 1}, but got {rows.min()} to {rows.max()}")
        known, inverse = np.unique(rows, return_inverse=True)  # HDF5 reads ascending numbers only
        with self._index() as index:
            position = index["position"][known][inverse]
            out = {key: torch.zeros(len(rows), index[key.path].shape[1]) for key in keys}
        shards = np.searchsorted(self._end, position, side="right")  # the number of each row's shard
        rank, ranks = process() if together else (0, 1)
        own = np.flatnonzero(shards % ranks == rank)
        for number in np.unique(shards[own]):
            shard = self._shard(int(number))
            wanted = np.flatnonzero(shards == number)
            within = position[wanted] - (self._end[number] - len(shard))
            for key in keys if shard.keys else ():
                out[key][wanted] = _restore(shard, key, within)
        if ranks > 1:
            for where, part in gathered((own, {key: block[own] for key, block in out.items()})):
                for key, block in part.items():
                    out[key][where] = block
        return out

    def mean_norm(self, key: Key) -> float:
        """The mean norm of a block over the attributed rows."""
        self._check([key])
        with self._index() as index:
            return float(index[f"norm/{key.path}"].attrs["mean"])

    def _check(self, keys: Sequence[Key]) -> None:
        unknown = [key.path for key in keys if key not in self.keys]
        if unknown:
            known = ", ".join(key.path for key in self.keys)
            raise UsageError(
                f"Expected blocks that {self.folder / self.side} has ({known}), but got {', '.join(unknown)}."
            )

    def _shard(self, number: int) -> Shard:
        return read_shard(self.folder / self.side / "shards" / self._shards[number].name, self.side, self.fingerprint)

    def _index(self) -> h5py.File:
        return open_index(self.folder, self.side)

    @staticmethod
    def finished(folder: str | Path, side: Side) -> bool:
        """Whether all rows of a side are stored and indexed; raises DamagedStore if the listing is damaged."""
        return side in Listing.read(Path(folder)).sides

    @staticmethod
    def stored_rows(
        folder: str | Path, side: Side, rows: int | None = None, fingerprint: str | None = None, together: bool = False
    ) -> np.ndarray | None:
        """Which rows are in whole shards, one bool a row; None if there is no shard.

        Args:
            rows: of the side's data; by default up to the highest row number found.
            fingerprint: of the run that the shards must belong to.
            together: all ranks of the run call this, and share the reading.

        Raises:
            DamagedStore: a shard is damaged, missing from a finished side, or does not belong here.
        """
        folder = Path(folder)
        entry = Listing.read(folder).sides.get(side)
        if entry is not None:
            check_listed(folder, side, entry)
        shards = scan(folder, side, fingerprint, together)
        if not shards:
            return None
        if rows is None:
            rows = 1 + max(int(shard.row.max(initial=-1)) for shard in shards)
        return positions(shards, rows, folder / side) >= 0

    @staticmethod
    def finish(folder: str | Path, side: Side, rows: int, together: bool = False) -> None:
        """Indexes a side when its writers have closed; see `rept.store.index.write_index`."""
        write_index(Path(folder), side, rows, together)

    @staticmethod
    def repair(folder: str | Path, side: Side, fingerprint: str | None = None, rows: int | None = None) -> list[Path]:
        """Removes damaged shards and the index, so that the missing rows are recomputed.

        Args:
            fingerprint, rows: as in `stored_rows`.

        Returns:
            The shards that were removed.
        """
        folder, removed = Path(folder), []
        try:
            sides = dict(Listing.read(folder).sides)
        except DamagedStore as fault:
            fault.path.unlink()
            sides = {}
        if (entry := sides.pop(side, None)) is not None:
            fingerprint = fingerprint or entry.fingerprint
            listed = {shard.name for shard in entry.shards}
            Listing(sides).write(folder)  # first, so that the remaining shards never count as finished
            removed = [path for path in shard_paths(folder, side) if path.name not in listed]
        for path in (folder / side / "index.h5", *removed):
            path.unlink(missing_ok=True)
        while True:
            try:
                AttributionStore.stored_rows(folder, side, rows, fingerprint)
                return removed
            except DamagedStore as fault:
                fault.path.unlink()
                removed.append(fault.path)


def _restore(shard: Shard, key: Key, index: slice | np.ndarray, buffer: Tensor | None = None) -> Tensor:
    """Rows (n D) of a block in float32 and in their original scale."""
    unit, norm = (torch.from_numpy(shard.columns[path][index]) for path in paths_of(key))
    rows = unit.to(torch.float32, copy=True) if buffer is None else buffer[: len(unit)].copy_(unit)
    return rows.mul_(norm[:, None])
