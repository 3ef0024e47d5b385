"""The rows of an open shard: gathered without keeping anything of each batch."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from rept.store.open_shard import OpenShard
from rept.store.shards import Shard
from rept.store.writer import ShardWriter
from rept.types import Status
from tests.helpers.stores import FINGERPRINT, G, H, signatures


def part(rows: range, width: int = 3) -> Shard:
    """Rows filled with their number; without signatures if ``width`` is 0."""
    row = np.array(rows, np.int64)
    unit = {key: np.repeat(row[:, None], width, axis=1).astype(np.float16) for key in (H, G)} if width else {}
    norm = {key: row.astype(np.float32) for key in unit}
    status = np.full(len(row), Status.ATTRIBUTED if width else Status.EMPTY_PROMPT, np.uint8)
    return Shard("train", FINGERPRINT, row, status, unit, norm)


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
    assert list(shard.unit) == list(shard.norm) == ([] if len(without) == 6 else [H, G])
    for key in shard.unit:
        assert (shard.unit[key] == expected[:, None]).all() and shard.unit[key].shape == (20, 3)
        assert (shard.norm[key] == expected).all()


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
