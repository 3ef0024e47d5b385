"""The listing of a store's files with their digests, and what it says without reading signatures.

``digests.json`` is written last: a side that it lists is finished. It contains a digest of itself too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import h5py
import numpy as np

from rept.errors import UsageError
from rept.store.shards import SCHEMA, DamagedStore, shard_paths
from rept.types import Side
from rept.utils.digests import content_digest, file_digest
from rept.utils.files import publish


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the listing; its digest is part of its name."""

    name: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class SideEntry:
    """A finished side in the listing."""

    fingerprint: str
    rows: int
    index: str  # digest of index.h5
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Listing:
    """``digests.json``."""

    sides: dict[Side, SideEntry] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Listing:
        """The listing of a store; empty where no side is finished.

        Raises:
            DamagedStore: the file is not byte for byte what was written.
            UsageError: the file cannot be read.
        """
        path = folder / "digests.json"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
        try:
            sides = {
                side: SideEntry(**entry | {"shards": [ShardEntry(**shard) for shard in entry["shards"]]})
                for side, entry in json.loads(text)["sides"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DamagedStore(path, "is damaged (it cannot be read)") from None
        listing = cls(sides)
        if listing._image() != text:
            raise DamagedStore(path, "is damaged (its content does not have the digest in it)")
        return listing

    def write(self, folder: Path) -> None:
        publish(folder / "digests.json", self._image())

    def _image(self) -> bytes:
        content = {"schema": SCHEMA, "sides": {side: asdict(entry) for side, entry in sorted(self.sides.items())}}
        digested = {"digest": content_digest(json.dumps(content).encode())} | content
        return (json.dumps(digested, indent=1) + "\n").encode()


def check_listed(folder: Path, side: Side, entry: SideEntry) -> None:
    """Raises DamagedStore unless the folder has exactly the shards listed, by name and size, and the index is intact.

    The shards' content is digested when they are read.
    """
    found = {path.name: path for path in shard_paths(folder, side)}
    for shard in entry.shards:
        path = found.pop(shard.name, None)
        if path is None:
            raise DamagedStore(folder / side / "shards" / shard.name, "is missing")
        if path.stat().st_size != shard.bytes:
            raise DamagedStore(path, f"is damaged ({path.stat().st_size:,} bytes instead of {shard.bytes:,})")
    if found:
        raise DamagedStore(min(found.values()), "does not belong to this store (it is not in its digests.json)")
    index = folder / side / "index.h5"
    if not index.is_file():
        raise DamagedStore(index, "is missing")
    if file_digest(index) != entry.index:
        raise DamagedStore(index, "is damaged (its content does not have the digest in digests.json)")


def finished_side(folder: Path, side: Side) -> SideEntry:
    """The entry of a side whose files are those listed.

    Raises:
        DamagedStore: as `check_listed`.
        UsageError: the side is not finished.
    """
    entry = Listing.read(folder).sides.get(side)
    if entry is None:
        raise UsageError(f"The signatures in {folder / side} are not finished; give the same command again to resume.")
    check_listed(folder, side, entry)
    return entry


def open_index(folder: Path, side: Side) -> h5py.File:
    """``index.h5``, without a lock, which a read-only folder does not allow and a file that never changes needs not."""
    return h5py.File(folder / side / "index.h5", "r", locking=False)


def stored_status(folder: Path, side: Side) -> np.ndarray:
    """The `Status` of each row (N, uint8) of a finished side, by row number. Raises as `finished_side`."""
    finished_side(folder, side)
    with open_index(folder, side) as index:
        status: np.ndarray = index["status"][()]
    return status
