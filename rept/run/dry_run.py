"""`--dry-run`: estimates the size and cost of a run from a few of its rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.data.padding import batch_slices
from rept.model.placement import input_device, place
from rept.run.distinctive_tokens import BACKGROUND
from rept.run.job import Job
from rept.run.prepare import prepare
from rept.run.rendered_row import rendered_row, show_rendered_row
from rept.run.sample_rows import choose_layers
from rept.run.stages import fit_extractor, set_up
from rept.signatures.extractor import ReadsAllPositions
from rept.signatures.module import AttributionModule
from rept.store.writer import SHARD_BYTES
from rept.types import SIDES, Side, Signature
from rept.utils.console import say, show_table
from rept.utils.environment import peak_memory
from rept.utils.tensors import unit_rows

TIMED_ROWS = 96  # a few seconds on a laptop, and enough for the mean cost of a token to settle
MEASURED_ROWS = 2048  # rows whose tokens are counted
# Bytes of HDF5's structure and of the manifest, for each shard and for each side, measured with two blocks.
SHARD_HEADER, SIDE_HEADER = 4_100, 6_500


class Cost(NamedTuple):
    """The cost of the timed rows."""

    seconds: float  # for each padded token: tokenizing, both passes, rounding and digesting for the store
    row_bytes: int  # of a row in the store


def estimate(config: AttributeConfig) -> dict[str, float]:
    """Prints and returns the estimated size and cost of a run; nothing is written.

    Seconds per token, padding included, come from a timed pass over evenly spaced rows on the trainer's device; the
    number of tokens comes from the lengths of evenly spaced rows, batched as the plan does it. The number of ranks
    divides the time. An extractor that learns is fitted here too, and its seconds count as extraction. Not included are
    answers that the model generates, the ranking, loading the libraries and the model, and training the model of the
    embedded data, which is used untrained if it does not exist yet. What a run would refuse is refused here too.
    """
    job = prepare(config, missing_model="untrained")
    if job.in_step:
        set_up(job)
    else:
        place(job.model, job.trainer)
    rows = {side: len(job.datamodule.source(side)) for side in SIDES}
    start = time.perf_counter()
    layers = choose_layers(job)[0].layers
    layer_seconds = time.perf_counter() - start
    if job.learns:
        fit_extractor(job)
    fit_seconds = time.perf_counter() - start - layer_seconds
    lengths = {side: job.datamodule.sample_lengths(side, MEASURED_ROWS) for side in SIDES}
    padded = {side: padded_tokens(lengths[side], job.datamodule) * rows[side] for side in SIDES}
    cost = _measure(job, layers)
    total = sum(rows.values())
    shards = sum(_shards(job, rows[side], padded[side], cost) for side in SIDES)
    figures = {
        "training rows": rows["train"],
        "queries": rows["query"],
        "rows set aside (share)": 1 - float((lengths["train"] > 0).mean()),
        "tokens": sum(float(lengths[side].mean()) * rows[side] for side in SIDES),
        "tokens of a batch": job.datamodule.tokens_per_batch,
        "bytes of the store": total * cost.row_bytes + SHARD_HEADER * shards + SIDE_HEADER * len(rows),
        "bytes on the disk while labelled rows are ranked": rows["train"] * (8 + 4 * rows["query"]),
        "seconds of extraction": fit_seconds + cost.seconds * sum(padded.values()) / job.trainer.world_size,
        "seconds of the probe and the token scores": layer_seconds + _token_seconds(job, rows, padded, cost),
        "peak memory in bytes": _peak(job, cost, total),
    }
    if job.trainer.is_global_zero:
        lines = [(name, _readable(name, value)) for name, value in figures.items()]
        show_table("Estimate (nothing was run or written)", ("", ""), lines, show_header=False)
        device = job.trainer.strategy.root_device.type
        say(
            f"Layers {', '.join(map(str, layers))}, on {job.trainer.world_size} x {device}. Not included: answers that "
            "the model generates, loading it, and the ranking (docs/scale.md has its cost)."
        )
        if row := rendered_row(job.datamodule):
            show_rendered_row(row)
    return figures


def padded_tokens(lengths: np.ndarray, datamodule: AttributionDataModule) -> float:
    """Returns the mean tokens of a row in its batch, padding included; a row set aside (length 0) has none."""
    tokens = 0
    for start in range(0, len(lengths), datamodule.window):
        window = np.sort(lengths[start : start + datamodule.window])
        attributed = window[window > 0].tolist()
        for group in (attributed[rows] for rows in batch_slices(attributed, datamodule.tokens_per_batch)):
            tokens += len(group) * max(group, default=0)
    return tokens / len(lengths)


def _token_seconds(job: Job, rows: dict[Side, int], padded: dict[Side, float], cost: Cost) -> float:
    """Each query and its best hits run once more, and `distinctive` masks every token of their prompts.

    A forward pass alone costs about a third of the measured one. Copies are counted whole, though most end after a few
    tokens of the response, and hits as if no two queries of a label shared one: an upper bound.
    """
    if not (job.config.tokens.hits and isinstance(job.extractor, ReadsAllPositions)):
        return 0.0
    hits = min(job.config.tokens.hits, rows["train"]) * rows["query"]
    tokens = hits * padded["train"] / rows["train"] + padded["query"]
    if job.config.tokens.form == "distinctive":
        masked = hits * _squared_prompts(job, "train") + rows["query"] * _squared_prompts(job, "query")
        references = 2 * min(BACKGROUND, rows["train"]) * padded["train"] / rows["train"]
        tokens += (masked + references) / 3
    return cost.seconds * tokens / (1 if job.in_step else job.trainer.world_size)


def _squared_prompts(job: Job, side: Side) -> float:
    """The mean of a text's prompt tokens times its tokens, over a few rows: the tokens of its masked copies."""
    texts = [text for row in _some_rows(job, side) if isinstance(text := job.datamodule.encoded(side, row), Encoded)]
    return float(np.mean([text.prompt_length * len(text.input_ids) for text in texts])) if texts else 0.0


def _some_rows(job: Job, side: Side) -> list[int]:
    """At most `TIMED_ROWS` rows, evenly spaced."""
    rows: list[int] = np.unique(np.linspace(0, len(job.datamodule.source(side)) - 1, TIMED_ROWS).astype(int)).tolist()
    return rows


def _measure(job: Job, layers: Sequence[int]) -> Cost:
    module = AttributionModule(job.model, job.extractor, layers)
    device = input_device(job.model)
    signature: Signature = {}
    for _ in range(2):  # the first pass warms up
        start, tokens = time.perf_counter(), 0
        for batch in job.datamodule.batches("train", _some_rows(job, "train")):
            tokens += batch.input_ids.numel()
            extraction = module.predict_step(batch.to(device))
            signature = extraction.signature if extraction and extraction.signature else signature
            for block in signature.values():
                unit_rows(block, job.config.store.dtype)
        seconds = time.perf_counter() - start
    size = {"float16": 2, "float32": 4}[job.config.store.dtype]
    # Unit rows and norms; the row's number, its status, and both once more with its position in the index.
    return Cost(seconds / max(1, tokens), sum(block.shape[1] * size + 4 for block in signature.values()) + 9 + 17)


def _shards(job: Job, rows: int, padded: float, cost: Cost) -> int:
    """The shards of one side: each ends with a batch, and each rank closes its last one at the end."""
    in_batch = rows * job.datamodule.tokens_per_batch / max(1, padded)
    whole = max(job.config.store.shard_rows or SHARD_BYTES / cost.row_bytes, in_batch)
    return max(math.ceil(rows / whole), min(job.trainer.world_size, rows))


def _peak(job: Job, cost: Cost, rows: int) -> float:
    """On a GPU the peak of the timed rows; on a CPU also a shard in writing: its rows, and its file."""
    if torch.cuda.is_available():
        return peak_memory()
    shard = SHARD_BYTES if job.config.store.shard_rows is None else job.config.store.shard_rows * cost.row_bytes
    return peak_memory() + 2 * min(shard, rows * cost.row_bytes)


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
