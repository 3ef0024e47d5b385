"""--dry-run: what a run will read, write, hold and take, from a few rows of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table

from rept.attribution import AttributionModule
from rept.console import console, say
from rept.pipeline import Job, prepare
from rept.run_folder import peak_memory
from rept.signature import Extraction
from rept.stages import probe_rows

PROBE_ROWS = 96  # timed rows: two seconds on a laptop, and enough for the mean length to settle


def estimate(config: DictConfig) -> dict[str, float]:
    """Prints, and returns, the size and cost of a run; nothing is written.

    Rows and tokens come from evenly spaced rows, seconds from a timed pass over a few batches of them on the device
    that the trainer would use. Ranks share the rows, so their number divides the time.

    Raises:
        UsageError: what the run itself would be refused for.
    """
    job = prepare(config, make_model=False)
    rows = {side: len(job.datamodule.source(side)) for side in ("train", "query")}
    lengths = job.datamodule.sample_lengths("train", 1024)
    attributed = lengths > 0
    layers = job.selector(
        job.model, list(job.datamodule.batches("train", probe_rows(job, job.selector.probe_rows)))
    ).layers
    seconds, width = _time(job, layers)
    size = {"float16": 2, "float32": 4}[config.store.dtype]
    total = rows["train"] + rows["query"]
    figures = {
        "training rows": rows["train"],
        "queries": rows["query"],
        "rows set aside (share)": 1 - float(attributed.mean()),
        "tokens": float(lengths.mean()) * total,
        "bytes of the store": total * (width * size + 32),
        "seconds of extraction": seconds * total / job.trainer.world_size,
        "peak memory in bytes": peak_memory(),
    }
    _show(figures, layers, job)
    return figures


def _time(job: Job, layers: list[int]) -> tuple[float, int]:
    """Seconds a row and stored values a row, over evenly spaced rows."""
    device = job.trainer.strategy.root_device
    module = AttributionModule(job.model.to(device), job.extractor, layers)
    total = len(job.datamodule.source("train"))
    rows = np.unique(np.linspace(0, total - 1, min(PROBE_ROWS, total)).astype(int)).tolist()
    batches = [batch.to(device) for batch in job.datamodule.batches("train", rows)]
    made: list[Extraction] = [module.predict_step(batches[0])]  # the first call pays for what later ones find ready
    start = time.perf_counter()
    made += [module.predict_step(batch) for batch in batches]
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    width = sum(block.shape[1] for block in made[-1].signature.values())
    return seconds / len(rows), width


def _show(figures: dict[str, float], layers: list[int], job: Any) -> None:
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
