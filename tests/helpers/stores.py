"""Small stores of random signatures, written batch by batch as a run writes them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rept.store.reader import AttributionStore
from rept.store.writer import ShardWriter
from rept.types import Key, Side, Signature, Status

H = Key("residual_stream", 2, "representation")
G = Key("residual_stream", 2, "gradient")
SCALE = {"representation": 200.0, "gradient": 1e-4}
FINGERPRINT = "c0ffee"


def signatures(rows: int, keys: Sequence[Key] = (H, G), width: int = 8, seed: int = 0) -> Signature:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(rows, width, generator=generator) * SCALE[key.field] for key in keys}


def batches(rows: int, size: int = 4, seed: int = 0) -> list[Tensor]:
    """The rows 0..rows-1, shuffled in windows of 10 as the batch plan does it, in batches."""
    generator = torch.Generator().manual_seed(seed)
    windows = [start + torch.randperm(min(10, rows - start), generator=generator) for start in range(0, rows, 10)]
    return [batch for window in windows for batch in torch.split(window, size)]


def write(
    folder: Path,
    signature: Signature,
    side: Side = "train",
    world: int = 1,
    shard_rows: int | None = 8,
    lost: Container[int] = (),
    cut: Container[int] = (),
    plan: Sequence[Tensor] | None = None,
    **options: Any,
) -> None:
    """Writes the batches that are not stored yet, batch i on rank i % world.

    Rows in ``lost`` have no signature; the responses of those in ``cut`` were cut.
    """
    rows = len(next(iter(signature.values())))
    plan = batches(rows) if plan is None else plan
    done = AttributionStore.stored_rows(folder, side, rows, FINGERPRINT)
    options = {"fingerprint": FINGERPRINT, "shard_rows": shard_rows} | options
    writers = [ShardWriter(folder, side, rank=rank, **options) for rank in range(world)]
    for number, batch in enumerate(plan):
        if done is not None and done[batch].all():
            continue
        of_row = [Status.EMPTY_PROMPT if row in lost else Status(row in cut) for row in batch.tolist()]
        keep = torch.tensor([status.attributed for status in of_row]).unsqueeze(1)
        block = {key: values[batch] * keep for key, values in signature.items()} if keep.any() else {}
        writers[number % world].append(batch, torch.tensor(of_row), block)
    for writer in writers:
        writer.close()


def make(folder: Path, signature: Signature, side: Side = "train", **options: Any) -> AttributionStore:
    """A finished store of these signatures."""
    write(folder, signature, side, **options)
    AttributionStore.finish(folder, side, len(next(iter(signature.values()))))
    return AttributionStore(folder, side)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def first_shard(folder: Path, side: Side = "train") -> Path:
    """The path of a side's first shard."""
    return min((folder / side / "shards").glob("*.h5"))


def sorted_rows(score: Tensor, k: int) -> list[list[int]]:
    """The k best rows of each query by a plain sort, ties by row number."""
    return [sorted(range(len(line)), key=lambda row: (-line[row], row))[:k] for line in score.tolist()]
