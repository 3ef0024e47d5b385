"""AttributionStore: the signatures of one side of a run, read from its shards.

A store is a folder with ``train/`` and ``query/``, each of ``shards/*.h5`` and ``index.h5``, and ``digests.json``,
which is written last. HDF5 opens no file before its digest is checked, so what was damaged is named and never used.
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

from rept.errors import UsageError
from rept.store.manifest import Listing, check_listed, write_index
from rept.store.scan import positions, scan, shard_paths
from rept.store.shards import DamagedStore, Shard, keys_below, read_shard
from rept.types import Key, Side, Status


class Block(NamedTuple):
    """Some attributed rows of a store, in its order."""

    row: Tensor  # (n) row numbers
    fields: dict[Key, Tensor]  # each (n D) float32, in the original scale


class AttributionStore:
    """A finished side of a store, open for reading.

    Args:
        folder: the run's ``store`` folder.
        side: "train" or "query".

    Raises:
        DamagedStore: a file is damaged, missing, or does not belong here. Shards are counted and measured now, and
            digested whenever they are read.
        UsageError: the side is not finished, or none of its rows could be attributed.
    """

    def __init__(self, folder: str | Path, side: Side) -> None:
        self.folder, self.side = Path(folder), side
        entry = Listing.read(self.folder).sides.get(side)
        if entry is None:
            raise UsageError(
                f"The signatures in {self.folder / side} are not finished; give the same command again to go on."
            )
        check_listed(self.folder, side, entry)
        self.rows = entry.rows
        self.fingerprint = entry.fingerprint
        self._shards = entry.shards
        self.bytes = sum(shard.bytes for shard in entry.shards)  # on the disk
        self._end = np.cumsum([0, *(shard.rows for shard in entry.shards)])[1:]  # position after each shard's last row
        with self._index() as index:
            self.keys = keys_below(index["norm"]) if "norm" in index else []
        if not self.keys:
            counts = Counter(Status(code).reason for code in self.status)
            told = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "there is none"
            raise UsageError(f"Expected {self.folder / side} to hold a row that could be attributed, but got: {told}.")

    @property
    def shard_names(self) -> list[str]:
        """The shards' file names, which hold the digests of their content."""
        return [shard.name for shard in self._shards]

    @cached_property
    def status(self) -> np.ndarray:
        """(N) uint8 by row number, see `Status`."""
        with self._index() as index:
            return index["status"][()]

    @cached_property
    def attributed(self) -> np.ndarray:
        """The numbers of the rows that have a signature, ascending."""
        return np.flatnonzero(self.status <= Status.CUT)

    def evenly_spaced(self, most: int = 4096) -> np.ndarray:
        """The numbers of at most ``most`` attributed rows, evenly spaced: a sample for means and word counts."""
        return self.attributed[:: -(-len(self.attributed) // most)]

    def blocks(
        self, keys: Sequence[Key], rows_per_block: int = 4096, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Block]:
        """The attributed rows, block by block, each block from one shard.

        Args:
            keys: whose fields are read.
            rows_per_block: at most.
            part: (i, n) gives every n-th shard, from the i-th: the share of one of n processes.

        Raises:
            DamagedStore: a shard is damaged.
        """
        self._check(keys)
        for number in range(part[0], len(self._shards), part[1]):
            shard = self._shard(number)
            if not shard.unit:
                continue
            for start in range(0, len(shard), rows_per_block):
                block = slice(start, start + rows_per_block)
                attributed = shard.status[block] <= Status.CUT
                index = block if attributed.all() else start + np.flatnonzero(attributed)
                row = torch.from_numpy(shard.row[index].copy())  # a view would keep the whole shard mapped
                if len(row):
                    yield Block(row, {key: _restore(shard, key, index) for key in keys})

    def read(self, rows: Sequence[int] | np.ndarray, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """The fields (n D) of some rows, in the order asked for; zeros for rows that were set aside.

        Raises:
            DamagedStore: a shard is damaged.
            IndexError: there is no such row.
        """
        self._check(keys)
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"expected rows from 0 to {self.rows - 1}, but got {rows.min()} to {rows.max()}")
        known, inverse = np.unique(rows, return_inverse=True)
        with self._index() as index:
            position = index["position"][known][inverse]
            out = {key: torch.zeros(len(rows), index[key.path].shape[1]) for key in keys}
        holder = np.searchsorted(self._end, position, side="right")
        for number in np.unique(holder):
            shard = self._shard(int(number))
            wanted = np.flatnonzero(holder == number)
            within = position[wanted] - (self._end[number] - len(shard))
            for key in keys if shard.unit else ():
                out[key][wanted] = _restore(shard, key, within)
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
                f"Expected blocks that {self.folder / self.side} holds ({known}), but got {', '.join(unknown)}."
            )

    def _shard(self, number: int) -> Shard:
        return read_shard(self.folder / self.side / "shards" / self._shards[number].name, self.side, self.fingerprint)

    def _index(self) -> h5py.File:
        # Without a lock, which a read-only folder does not allow and a file that never changes does not need.
        return h5py.File(self.folder / self.side / "index.h5", "r", locking=False)

    @staticmethod
    def finished(folder: str | Path, side: Side) -> bool:
        """Whether all rows of a side are there and indexed.

        Raises:
            DamagedStore: the listing is damaged.
        """
        return side in Listing.read(Path(folder)).sides

    @staticmethod
    def stored_rows(
        folder: str | Path,
        side: Side,
        rows: int | None = None,
        fingerprint: str | None = None,
        together: bool = False,
    ) -> np.ndarray | None:
        """Which rows are in whole shards, one bool a row; None if there is no shard.

        Args:
            rows: of the side's data; by default as many as the highest row number found needs.
            fingerprint: of the run that the shards must belong to.
            together: all ranks of the run call this, and share the reading.

        Raises:
            DamagedStore: a shard is damaged, missing from a finished side, or does not belong here.
        """
        folder = Path(folder)
        entry = Listing.read(folder).sides.get(side)
        if entry is not None:
            check_listed(folder, side, entry)
        found = scan(folder, side, fingerprint, together)
        if not found:
            return None
        if rows is None:
            rows = 1 + max(int(one.row.max(initial=-1)) for one in found)
        return positions(found, rows, folder / side) >= 0

    @staticmethod
    def finish(folder: str | Path, side: Side, rows: int, together: bool = False) -> None:
        """Writes the index, and last the listing, once every row from 0 to ``rows`` - 1 is there exactly once.

        To be called after every writer has closed: by one process, or ``together`` by all, who share the reading.

        Raises:
            UsageError: rows are missing (how many, and which first), or the disk is full.
            DamagedStore: a shard is damaged, or does not belong here.
        """
        write_index(Path(folder), side, rows, together)

    @staticmethod
    def repair(folder: str | Path, side: Side, fingerprint: str | None = None, rows: int | None = None) -> list[Path]:
        """Removes what is damaged, and the index; then the rows that are gone can be computed anew.

        Args:
            fingerprint, rows: as in `stored_rows`.

        Returns:
            The shards that were removed.
        """
        folder = Path(folder)
        try:
            sides = dict(Listing.read(folder).sides)
        except DamagedStore as fault:
            fault.path.unlink()
            sides = {}
        listed = None
        if (entry := sides.pop(side, None)) is not None:
            fingerprint = fingerprint or entry.fingerprint
            listed = {shard.name for shard in entry.shards}
            Listing(sides).write(folder)  # first, so that what is left is never taken for finished
        (folder / side / "index.h5").unlink(missing_ok=True)
        removed = []
        for path in shard_paths(folder, side):
            try:
                read_shard(path, side, fingerprint)
                foreign = listed is not None and path.name not in listed
            except DamagedStore:
                foreign = True
            if foreign:
                path.unlink()
                removed.append(path)
        while True:
            try:
                AttributionStore.stored_rows(folder, side, rows, fingerprint)
                return removed
            except DamagedStore as fault:  # whole, but with rows that are there twice or none of the data's
                fault.path.unlink()
                removed.append(fault.path)


def _restore(shard: Shard, key: Key, index: slice | np.ndarray) -> Tensor:
    """Rows (n D) of a block in float32 and in their original scale."""
    rows = torch.from_numpy(shard.unit[key][index]).to(torch.float32, copy=True)
    return rows.mul_(torch.from_numpy(shard.norm[key][index])[:, None])
