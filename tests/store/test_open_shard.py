"""The rows of an open shard: gathered without keeping anything of each batch."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from rept.store.open_shard import OpenShard
from rept.store.shards import Shard, paths_of
from rept.store.writer import ShardWriter
from rept.types import Status
from tests.helpers.stores import FINGERPRINT, G, H, signatures


def part(rows: range, width: int = 3) -> Shard:
    """Rows filled with their number; without signatures if ``width`` is 0."""
    row = np.array(rows, np.int64)
    status = np.full(len(row), Status.ATTRIBUTED if width else Status.EMPTY_PROMPT, np.uint8)
    columns = {"row": row, "status": status}
    for key in (H, G) if width else ():
        unit, norm = paths_of(key)
        columns |= {unit: np.repeat(row[:, None], width, axis=1).astype(np.float16), norm: row.astype(np.float32)}
    return Shard("train", FINGERPRINT, columns)


@pytest.mark.parametrize("without", [(), (0,), (0, 1), (2,), (5,), tuple(range(6))])
def test_rows_stand_in_order_and_those_without_signatures_are_zero(without: tuple[int, ...]) -> None:
    opened = OpenShard("train", FINGERPRINT)
    ends = [0, 1, 4, 5, 11, 12, 20]
    for i, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        opened.append(part(range(start, end), width=0 if i in without else 3))
    shard, lost = opened.shard(), [row for i in without for row in range(ends[i], ends[i + 1])]
    expected = np.arange(20)
    assert (shard.row == expected).all() and len(opened) == len(shard) == 20
    assert np.flatnonzero(shard.status).tolist() == lost
    expected[lost] = 0
    assert shard.keys == ([] if len(without) == 6 else sorted([H, G]))
    for unit, norm in (([shard.columns[path] for path in paths_of(key)]) for key in shard.keys):
        assert (unit == expected[:, None]).all() and unit.shape == (20, 3)
        assert (norm == expected).all()


def test_other_blocks_than_before_are_refused() -> None:
    opened = OpenShard("train", FINGERPRINT)
    opened.append(part(range(4)))
    with pytest.raises(ValueError, match="expected all signatures to have the blocks"):
        opened.append(part(range(4, 8), width=2))
    assert len(opened) == 4


def test_an_open_shard_keeps_little_more_than_what_it_stores(tmp_path: Path) -> None:
    """Doubled arrays are at most half empty; anything kept of each batch of 2 rows would exceed the bound."""
    rows, width = 4000, 16
    signature = signatures(rows, width=width)
    tracemalloc.start()
    try:
        writer = ShardWriter(tmp_path, "train", FINGERPRINT)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for row in torch.arange(rows).split(2):
            writer.append(row, torch.zeros(2), {key: block[row] for key, block in signature.items()})
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    stored = rows * (2 * (2 * width + 4) + 9)
    assert stored <= kept < 2.2 * stored
