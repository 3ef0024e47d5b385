"""Writes the index of a finished side of a store.

``index.h5`` shows the shards as one table to any HDF5 reader. For each key it has a virtual dataset (N D) and its
norms, mapped to the shards; the norms have their ``mean`` over the attributed rows. ``row`` (N) is the row number at
each position, ``position`` (N) its inverse, and ``status`` (N) is by row number. `AttributionStore` reads the shards
themselves, since a virtual dataset reads a missing shard as zeros.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from rept.distributed.collectives import process
from rept.errors import UsageError
from rept.store.manifest import Listing, ShardEntry, SideEntry
from rept.store.scan import ShardSummary, positions, scan
from rept.store.shards import HDF5, SCHEMA, is_attributed, shard_paths
from rept.types import Side
from rept.utils.digests import content_digest
from rept.utils.files import publish
from rept.utils.text import format_count


def write_index(folder: Path, side: Side, rows: int, together: bool = False) -> None:
    """Writes the index of a side, and then its entry in the listing; every row must be stored exactly once.

    Args:
        rows: of the side's data.
        together: all ranks of the run call this, and share the reading; rank 0 writes.

    Raises:
        DamagedStore: a shard is damaged or belongs elsewhere, or has a row that another has too.
        UsageError: rows are missing (how many, and which first), or the disk is full.
    """
    shards = scan(folder, side, together=together)
    if together and process()[0] != 0:
        return
    position = positions(shards, rows, folder / side)
    missing = np.flatnonzero(position < 0)
    if missing.size:
        first = ", ".join(map(str, missing[:5].tolist()))
        raise UsageError(
            f"{folder / side} lacks {missing.size:,} of {format_count(rows, 'row')} (first: {first}); "
            "give the same command again to compute them."
        )
    image = _index_image(shards, position)
    publish(folder / side / "index.h5", image)
    entry = SideEntry(
        fingerprint=shards[0].fingerprint if shards else "",
        rows=rows,
        index=content_digest(image),
        shards=[ShardEntry(str(shard.name), shard.path.stat().st_size, len(shard.row)) for shard in shards],
    )
    Listing(Listing.read(folder).sides | {side: entry}).write(folder)
    keep = {shard.path for shard in shards}
    for path in [*shard_paths(folder, side), *(folder / side / "shards").glob(".*.partial")]:
        if path not in keep:  # left by a run that was killed
            path.unlink()


def _index_image(shards: Sequence[ShardSummary], position: np.ndarray) -> memoryview:
    rows = len(position)
    row = np.empty(rows, np.int64)
    row[position] = np.arange(rows)
    status = np.concatenate([shard.status for shard in shards])[position] if shards else np.zeros(0, np.uint8)
    image = io.BytesIO()
    with h5py.File(image, "w", **HDF5) as file:
        file.attrs["schema"] = np.int64(SCHEMA)
        for path in sorted({path for shard in shards for path in shard.blocks}):
            _map_shards(file, path, shards)
        file.create_dataset("row", data=row)
        file.create_dataset("position", data=position)
        file.create_dataset("status", data=status)
        attributed = np.count_nonzero(is_attributed(status))
        for path in sorted({path for shard in shards for path in shard.norms}):
            file[path].attrs["mean"] = sum(shard.norms.get(path, 0.0) for shard in shards) / attributed
    return image.getbuffer()


def _map_shards(file: h5py.File, path: str, shards: Sequence[ShardSummary]) -> None:
    """Adds a virtual dataset of the shards' datasets, concatenated; a shard without the key gives zeros.

    In HDF5's low-level calls: h5py's virtual layouts record the time, and equal rows would not give equal bytes.
    """
    (_, *width), dtype = next(shard.blocks[path] for shard in shards if path in shard.blocks)
    whole = h5py.h5s.create_simple((sum(len(shard.row) for shard in shards), *width))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    start = 0
    for shard in shards:
        if path in shard.blocks:
            shape = shard.blocks[path][0]
            whole.select_hyperslab((start, *(0 for _ in width)), shape)
            # The file name is relative to the index, so that the run folder can be moved.
            source = h5py.h5s.create_simple(shape)
            layout.set_virtual(whole, f"shards/{shard.path.name}".encode(), path.encode(), source)
        start += len(shard.row)
    group, _, name = path.rpartition("/")
    whole.select_all()
    h5py.h5d.create(
        file.require_group(group).id, name.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=layout
    )
