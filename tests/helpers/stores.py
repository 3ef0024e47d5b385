"""Small stores of random signatures, written batch by batch as a run writes them."""

from __future__ import annotations

import torch

from rept.store.reader import AttributionStore
from rept.store.writer import ShardWriter
from rept.types import Key, Status

H = Key("residual_stream", 2, "representation")
G = Key("residual_stream", 2, "gradient")
SCALE = {"representation": 200.0, "gradient": 1e-4}
FINGERPRINT = "c0ffee"


def signatures(rows, keys=(H, G), width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(rows, width, generator=generator) * SCALE[key.field] for key in keys}


def batches(rows, size=4, seed=0):
    """The rows 0..rows-1, shuffled in windows of 10 as the batch plan does it, in batches."""
    generator = torch.Generator().manual_seed(seed)
    windows = [start + torch.randperm(min(10, rows - start), generator=generator) for start in range(0, rows, 10)]
    return [batch for window in windows for batch in window.split(size)]


def write(folder, signature, side="train", world=1, shard_rows=8, lost=(), plan=None, **options):
    """Writes the batches that are not stored yet, batch i on rank i % world. Rows in ``lost`` have no signature."""
    rows = len(next(iter(signature.values())))
    plan = batches(rows) if plan is None else plan
    done = AttributionStore.stored_rows(folder, side, rows, FINGERPRINT)
    options = {"fingerprint": FINGERPRINT, "shard_rows": shard_rows} | options
    writers = [ShardWriter(folder, side, rank=rank, **options) for rank in range(world)]
    for number, batch in enumerate(plan):
        if done is not None and done[batch].all():
            continue
        status = torch.tensor([Status.EMPTY_PROMPT if row in lost else Status.ATTRIBUTED for row in batch.tolist()])
        keep = (status == Status.ATTRIBUTED).unsqueeze(1)
        block = {key: values[batch] * keep for key, values in signature.items()} if keep.any() else {}
        writers[number % world].append(batch, status, block)
    for writer in writers:
        writer.close()


def make(folder, signature, side="train", **options):
    """A finished store of these signatures."""
    write(folder, signature, side, **options)
    AttributionStore.finish(folder, side, len(next(iter(signature.values()))))
    return AttributionStore(folder, side)


def files(folder):
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def first_shard(folder, side="train"):
    """The path of a side's first shard."""
    return min((folder / side / "shards").glob("*.h5"))


def sorted_rows(score, k):
    """The k best rows of each query by a plain sort, ties by row number."""
    return [sorted(range(len(line)), key=lambda row: (-line[row], row))[:k] for line in score.tolist()]
