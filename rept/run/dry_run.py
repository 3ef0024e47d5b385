"""--dry-run: what a run will read, write, hold and take, from a few rows of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.padding import batch_slices
from rept.model.placement import input_device, place
from rept.run.job import Job
from rept.run.prepare import prepare
from rept.run.sample_rows import choose_layers
from rept.run.stages import fit_extractor, set_up
from rept.signatures.extractor import ReadsAllPositions
from rept.signatures.module import AttributionModule
from rept.store.shards import unit_rows
from rept.store.writer import SHARD_BYTES
from rept.types import Signature
from rept.utils.console import console, say
from rept.utils.environment import peak_memory

PROBE_ROWS = 96  # timed rows: a few seconds on a laptop, and enough for a token's mean cost to settle
LENGTHS = 2048  # rows whose tokens are counted
# Bytes of HDF5's structure and of the listing, for each shard and besides for each side, as measured for two blocks.
SHARD_HEADER, SIDE_HEADER = 4_100, 6_500


class Cost(NamedTuple):
    """What the timed rows took."""

    seconds: float  # for each padded token: tokenizing, both passes, rounding and digesting for the store
    row_bytes: int  # of a row in the store


def estimate(config: AttributeConfig) -> dict[str, float]:
    """Prints, and returns, the size and cost of a run; nothing is written.

    Seconds come from a timed pass over evenly spaced rows on the device that the trainer would use, for each token of a
    batch, padding included; how many of those there are, from the lengths of evenly spaced rows, cut into batches as
    the plan does it. Ranks share the rows, so their number divides the time. An extractor that learns first does so
    here too, and its seconds are among those of the extraction. Answers that the model is still to give are not in it,
    nor is reading the libraries and the model.

    Raises:
        UsageError: what the run itself would be refused for.
    """
    job = prepare(config, make_model=False)
    if job.in_step:
        set_up(job)
    else:
        place(job.model, job.trainer)
    rows = {side: len(job.datamodule.source(side)) for side in ("train", "query")}
    seconds: dict[str, float] = {}
    with _timed(seconds, "layers"):
        layers = choose_layers(job)[0].layers
    with _timed(seconds, "fit"):
        if job.learns:
            fit_extractor(job)
    lengths = {side: job.datamodule.sample_lengths(side, LENGTHS) for side in ("train", "query")}
    padded = {side: padded_tokens(lengths[side], job.datamodule) * rows[side] for side in rows}  # in all
    cost = _time(job, layers)
    total = sum(rows.values())
    shards = sum(_shards(job, rows[side], padded[side], cost) for side in rows)
    store = total * cost.row_bytes + SHARD_HEADER * shards + SIDE_HEADER * len(rows)
    seconds["extraction"] = seconds["fit"] + cost.seconds * sum(padded.values()) / job.trainer.world_size
    # Each query's hits and the query itself run once more, every token of them scored.
    asked = min(config.tokens.hits, rows["train"]) * padded["train"] / rows["train"] * rows["query"] + padded["query"]
    scored = config.tokens.hits and isinstance(job.extractor, ReadsAllPositions)
    shared = 1 if job.in_step else job.trainer.world_size
    seconds["tokens"] = cost.seconds * asked / shared if scored else 0.0
    figures = {
        "training rows": rows["train"],
        "queries": rows["query"],
        "rows set aside (share)": 1 - float((lengths["train"] > 0).mean()),
        "tokens": sum(float(lengths[side].mean()) * rows[side] for side in rows),
        "tokens of a batch": job.datamodule.tokens_per_batch,
        "bytes of the store": store,
        "bytes on the disk while labelled rows are ranked": rows["train"] * (8 + 4 * rows["query"]),
        "seconds of extraction": seconds["extraction"],
        "seconds of the probe and the token scores": seconds["layers"] + seconds["tokens"],
        "peak memory in bytes": _peak(job, cost, total),
    }
    if job.trainer.is_global_zero:
        _show(figures, layers, job)
    return figures


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def padded_tokens(lengths: np.ndarray, datamodule: AttributionDataModule) -> float:
    """Tokens that a row takes up in its batch, padding included, on average; rows set aside (length 0) take none."""
    tokens = 0
    for start in range(0, len(lengths), datamodule.window):
        window = np.sort(lengths[start : start + datamodule.window])
        attributed = window[window > 0].tolist()
        for group in (attributed[rows] for rows in batch_slices(attributed, datamodule.tokens_per_batch)):
            tokens += len(group) * max(group, default=0)
    return tokens / len(lengths)


def _time(job: Job, layers: Sequence[int]) -> Cost:
    module = AttributionModule(job.model, job.extractor, layers)
    device = input_device(job.model)
    total = len(job.datamodule.source("train"))
    rows = np.unique(np.linspace(0, total - 1, min(PROBE_ROWS, total)).astype(int)).tolist()
    signature: Signature = {}
    for timed in (False, True):  # the first pass pays for what later ones find ready
        start, tokens = time.perf_counter(), 0
        for batch in job.datamodule.batches("train", rows):
            tokens += batch.input_ids.numel()
            signature = module.predict_step(batch.to(device)).signature or signature
            for block in signature.values():
                unit_rows(block, job.config.store.dtype)
        if timed:
            seconds = time.perf_counter() - start
    size = {"float16": 2, "float32": 4}[job.config.store.dtype]
    # Unit rows and norms; the row's number, its status, and both once more with its position in the index.
    return Cost(seconds / max(1, tokens), sum(block.shape[1] * size + 4 for block in signature.values()) + 9 + 17)


def _shards(job: Job, rows: int, padded: float, cost: Cost) -> int:
    """Of one side: they end with a batch, and each rank closes its last one when it is through."""
    in_batch = rows * job.datamodule.tokens_per_batch / max(1, padded)
    whole = max(job.config.store.shard_rows or SHARD_BYTES / cost.row_bytes, in_batch)
    return max(math.ceil(rows / whole), min(job.trainer.world_size, rows))


def _peak(job: Job, cost: Cost, rows: int) -> float:
    """On a GPU what the timed rows took there; else also what a shard takes while it is written: its parts, whole, and
    as a file."""
    if torch.cuda.is_available():
        return peak_memory()
    shard = SHARD_BYTES if job.config.store.shard_rows is None else job.config.store.shard_rows * cost.row_bytes
    return peak_memory() + 3 * min(shard, rows * cost.row_bytes)


def _show(figures: dict[str, float], layers: list[int], job: Job) -> None:
    table = Table(title="To expect (nothing was run or written)", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, _readable(name, value))
    console.print(table)
    say(f"Layers {', '.join(map(str, layers))}, on {job.trainer.world_size} x {job.trainer.strategy.root_device.type}.")


def _readable(name: str, value: float) -> str:
    if "bytes" in name:
        for unit in ("B", "kB", "MB", "GB"):
            if value < 1000:
                return f"{value:.3g} {unit}"
            value /= 1000
        return f"{value:,.3g} TB"
    if "seconds" in name:
        return f"{value:,.0f} s" if value < 7200 else f"{value / 3600:,.1f} h"
    return f"{value:.1%}" if "share" in name else f"{value:,.0f}"
