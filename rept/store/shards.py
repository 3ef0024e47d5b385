"""A shard: some rows of a store in one HDF5 file.

For each key a shard has ``site/layer/field`` (n D), rows of norm 1, and ``norm/site/layer/field`` (n) float32; a row of
the signature is its norm times its unit row. It also has ``row`` (n) int64 and ``status`` (n) uint8. A shard without
any attributed row has no keys. All datasets are contiguous and of fixed width, nothing is pickled, and equal rows give
equal bytes. The file's name contains the digest of its content, which is compared before HDF5 opens the file.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from rept.errors import UsageError
from rept.types import Key, Side, Status
from rept.utils.digests import content_digest

SCHEMA = 1
REPAIR = "run again with store.repair=true to recompute its rows"

# A fixed version keeps the bytes the same whatever HDF5 is installed; without a start at a multiple of 64 bytes,
# a float32 dataset could not be read in place.
HDF5 = {"libver": ("v110", "v110"), "alignment_threshold": 1, "alignment_interval": 64}
SETTLED = 1.0  # seconds after a change of a file from which on the next change must give it another time stamp

_checked: dict[Path, tuple[int, ...] | None] = {}  # the `_state` of each shard whose digest this process has computed


class DamagedStore(UsageError):
    """A file of a store that must not be used. ``path`` names it."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} {fault}; {REPAIR}.")
        self.path = path


def check_shards(dtype: str, shard_rows: int | None) -> None:
    """Raises UsageError for a dtype or number of rows that shards cannot have."""
    if dtype not in ("float16", "float32"):
        raise UsageError(f"Expected store.dtype to be float16 or float32, but got {dtype!r}.")
    if shard_rows is not None and shard_rows < 1:
        raise UsageError(f"Expected store.shard_rows to be at least 1, but got {shard_rows}.")


def is_attributed(status: np.ndarray) -> np.ndarray:
    """Mask of the rows that have a signature, by their status (n)."""
    return np.asarray(status <= Status.CUT)


class ShardName(NamedTuple):
    """``r000-000012-DIGEST.h5``: the rank that wrote it, its number among that rank's shards, its content's digest."""

    rank: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"r{self.rank:03d}-{self.number:06d}-{self.digest}.h5"

    @classmethod
    def parse(cls, path: Path) -> ShardName | None:
        """The name of a file; None where it is not a shard's."""
        match = re.fullmatch(r"r(\d{3,})-(\d{6,})-([0-9a-f]{32})\.h5", path.name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None


def shard_paths(folder: Path, side: Side) -> list[Path]:
    """All files that have a shard's suffix, intact or not; unfinished ones (``.partial``) do not."""
    return sorted((folder / side / "shards").glob("[!.]*.h5"))


@dataclass(frozen=True)
class Shard:
    """Rows of one side of one run, in memory."""

    side: Side
    fingerprint: str  # of the run
    columns: dict[str, np.ndarray]  # the datasets of its file by their paths, in any order

    def __len__(self) -> int:
        return len(self.row)

    @property
    def row(self) -> np.ndarray:
        return self.columns["row"]

    @property
    def status(self) -> np.ndarray:
        return self.columns["status"]

    @property
    def keys(self) -> list[Key]:
        """The keys of its signatures, in order; none if no row is attributed."""
        return sorted(Key.parse(path.removeprefix("norm/")) for path in self.columns if path.startswith("norm/"))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(values.itemsize * math.prod(values.shape[1:]) for values in self.columns.values())

    def image(self) -> memoryview:
        """The bytes of the shard's file, made in memory so that no HDF5 call fails on a full disk."""
        image = io.BytesIO()
        with h5py.File(image, "w", **HDF5) as file:
            file.attrs["schema"] = np.int64(SCHEMA)
            file.attrs["side"] = np.bytes_(self.side)
            file.attrs["fingerprint"] = np.bytes_(self.fingerprint)
            file.create_group("norm")
            for path in (*(path for key in self.keys for path in paths_of(key)), "row", "status"):
                file.create_dataset(path, data=self.columns[path])
        return image.getbuffer()


def read_shard(path: Path, side: Side, fingerprint: str | None = None) -> Shard:
    """Reads a shard. Its arrays are the file itself, mapped into memory: nothing is copied.

    A run reads its store several times; a process computes a file's digest again only if the file has changed since.

    Args:
        fingerprint: of the run that it must belong to; None accepts any.

    Raises:
        DamagedStore: its content does not have the digest in its name, or it is not a shard of this side of this run.
        UsageError: the file cannot be read.
    """
    name = ShardName.parse(path)
    if name is None:
        raise DamagedStore(path, "does not belong to this store (its name is not one that the store gives)")
    try:
        data, state = _map(path)
    except FileNotFoundError:
        raise DamagedStore(path, "is missing") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    if state is None or _checked.get(path) != state:
        if content_digest(data) != name.digest:
            raise DamagedStore(path, "is damaged (its content does not have the digest in its name)")
        _checked[path] = state
    try:
        with h5py.File(data, "r") as file:
            shard = _read(file, data)
    except (OSError, KeyError) as error:
        raise DamagedStore(path, f"is not a shard of schema {SCHEMA} ({error})") from error
    if shard.side != side:
        raise DamagedStore(path, f"has rows of the {shard.side} side, not of the {side} side")
    if fingerprint is not None and shard.fingerprint != fingerprint:
        raise DamagedStore(path, f"was made by another run ({shard.fingerprint}, not {fingerprint})")
    return shard


def _read(file: h5py.File, data: bytes | mmap.mmap) -> Shard:
    if file.attrs["schema"] != SCHEMA:
        raise KeyError(f"schema {file.attrs['schema']}")
    paths = ("row", "status", *(path for key in keys_below(file["norm"]) for path in paths_of(key)))
    columns = {path: _in_place(data, file[path]) for path in paths}
    return Shard(file.attrs["side"].decode(), file.attrs["fingerprint"].decode(), columns)


def paths_of(key: Key) -> tuple[str, str]:
    """The paths of the datasets of a key: its rows of norm 1, and their norms."""
    return key.path, f"norm/{key.path}"


def keys_below(group: h5py.Group) -> list[Key]:
    """The keys of the datasets in a group of a shard or an index, in order."""
    paths: list[str] = []
    group.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
    return sorted(map(Key.parse, paths))


def _map(path: Path) -> tuple[bytes | mmap.mmap, tuple[int, ...] | None]:
    """The file's content and its state."""
    with path.open("rb") as stream:
        state = _state(os.fstat(stream.fileno()))
        if not path.stat().st_size:
            return b"", state  # an empty file cannot be mapped
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), state


def _state(found: os.stat_result) -> tuple[int, ...] | None:
    """What any later change of a file alters; None for a file that changed so recently that it may not."""
    if time.time() - max(found.st_mtime, found.st_ctime) <= SETTLED:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _in_place(data: bytes | mmap.mmap, dataset: h5py.Dataset) -> np.ndarray:
    offset = dataset.id.get_offset()
    return np.frombuffer(data, dataset.dtype, dataset.size, offset).reshape(dataset.shape)
