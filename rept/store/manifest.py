"""The index of a finished side of a store, and the listing of every file with its digest.

``index.h5`` shows the shards as one: for each key a virtual dataset (N D) and its norms (with their ``mean`` over the
attributed rows), with one mapping a shard; ``row`` (N), the row number at each position; ``position`` (N), its inverse;
``status`` (N) by row number. It is for any HDF5 reader; `AttributionStore` reads the shards themselves, since a virtual
dataset takes a missing shard for zeros.

``digests.json`` is written last: a side that it names is finished. It holds a digest of itself too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import h5py
import numpy as np

from rept.distributed.collectives import process
from rept.errors import UsageError
from rept.store.scan import Found, positions, scan, shard_paths
from rept.store.shards import HDF5, SCHEMA, DamagedStore
from rept.types import Side, Status
from rept.utils.digests import content_digest, file_digest
from rept.utils.files import publish


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the listing; its digest stands in its name."""

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
            DamagedStore: the file is not, byte for byte, what was written.
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
    """Raises DamagedStore unless exactly the shards listed are there, by name and size, and the index is intact.

    The shards' content is digested when they are read.
    """
    there = {path.name: path for path in shard_paths(folder, side)}
    for shard in entry.shards:
        path = there.pop(shard.name, None)
        if path is None:
            raise DamagedStore(folder / side / "shards" / shard.name, "is missing")
        if path.stat().st_size != shard.bytes:
            raise DamagedStore(path, f"is damaged ({path.stat().st_size:,} bytes instead of {shard.bytes:,})")
    if there:
        raise DamagedStore(min(there.values()), "does not belong to this store (it is not in its digests.json)")
    index = folder / side / "index.h5"
    if not index.is_file():
        raise DamagedStore(index, "is missing")
    if file_digest(index) != entry.index:
        raise DamagedStore(index, "is damaged (its content does not have the digest in digests.json)")


def write_index(folder: Path, side: Side, rows: int, together: bool = False) -> None:
    """Writes the index of a side and enters it in the listing, last.

    Args:
        together: as for `scan`; rank 0 writes.

    Raises:
        DamagedStore: a shard is damaged or belongs elsewhere, or holds a row that another has too.
        UsageError: rows are missing.
    """
    found = scan(folder, side, together=together)
    if together and process()[0] != 0:
        return
    position = positions(found, rows, folder / side)
    missing = np.flatnonzero(position < 0)
    if missing.size:
        first = ", ".join(map(str, missing[:5].tolist()))
        raise UsageError(
            f"{missing.size:,} of {rows:,} rows are missing in {folder / side} (first: {first}); "
            "give the same command again to compute them."
        )
    image = _index_image(found, position)
    publish(folder / side / "index.h5", image)
    entry = SideEntry(
        fingerprint=found[0].fingerprint if found else "",
        rows=rows,
        index=content_digest(image),
        shards=[ShardEntry(str(one.name), one.path.stat().st_size, len(one.row)) for one in found],
    )
    Listing(Listing.read(folder).sides | {side: entry}).write(folder)
    keep = {one.path for one in found}
    for path in [*shard_paths(folder, side), *(folder / side / "shards").glob(".*.partial")]:
        if path not in keep:  # left by a run that was killed
            path.unlink()


def _index_image(found: Sequence[Found], position: np.ndarray) -> memoryview:
    rows = len(position)
    row = np.empty(rows, np.int64)
    row[position] = np.arange(rows)
    status = np.concatenate([one.status for one in found])[position] if found else np.zeros(0, np.uint8)
    image = io.BytesIO()
    with h5py.File(image, "w", **HDF5) as file:
        file.attrs["schema"] = np.int64(SCHEMA)
        for path in sorted({path for one in found for path in one.blocks}):
            _map_shards(file, path, found)
        file.create_dataset("row", data=row)
        file.create_dataset("position", data=position)
        file.create_dataset("status", data=status)
        attributed = np.count_nonzero(status <= Status.CUT)
        for path in sorted({path for one in found for path in one.norms}):
            file[path].attrs["mean"] = sum(one.norms.get(path, 0.0) for one in found) / attributed
    return image.getbuffer()


def _map_shards(file: h5py.File, path: str, found: Sequence[Found]) -> None:
    """A virtual dataset of the shards' datasets, end to end; a shard without the key gives zeros.

    By HDF5's own calls: h5py's virtual layouts note the time, and equal rows would not give equal bytes.
    """
    (_, *width), dtype = next(one.blocks[path] for one in found if path in one.blocks)
    whole = h5py.h5s.create_simple((sum(len(one.row) for one in found), *width))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    start = 0
    for one in found:
        if path in one.blocks:
            shape = one.blocks[path][0]
            whole.select_hyperslab((start, *(0 for _ in width)), shape)
            # The file name is relative to the index, so that the run folder can be moved.
            source = h5py.h5s.create_simple(shape)
            layout.set_virtual(whole, f"shards/{one.path.name}".encode(), path.encode(), source)
        start += len(one.row)
    group, _, name = path.rpartition("/")
    whole.select_all()
    h5py.h5d.create(
        file.require_group(group).id, name.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=layout
    )
