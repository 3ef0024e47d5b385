"""datamodule.tokens_per_batch=auto: the largest token budget of a batch that fits on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.signatures.module import AttributionModule
from rept.types import Batch
from rept.utils.console import say

if TYPE_CHECKING:
    from rept.run.job import Job


def settle_budget(job: Job, layers: Sequence[int]) -> None:
    """Gives the data module its token budget where it was left to us, the same on every rank and after a resume.

    It is tried out on rank 0's device, kept in provenance.json, and taken from there when the run goes on.
    """
    if not job.datamodule.tokens_per_batch_auto:
        return
    known = job.trainer.strategy.broadcast(known_budget(job.folder))
    if known is None:
        known = job.trainer.strategy.broadcast(find_budget(job, layers) if job.trainer.is_global_zero else None)
        job.folder.describe(tokens_per_batch=known)
        say(f"datamodule.tokens_per_batch=auto: {known:,} tokens.")
    else:
        say(f"datamodule.tokens_per_batch=auto: {known:,} tokens, found before, reused.")
    job.datamodule.tokens_per_batch = known


def known_budget(folder: RunFolder) -> int | None:
    """The budget that was found when the run began, if it was."""
    return folder.description().get("tokens_per_batch")


def find_budget(job: Job, layers: Sequence[int]) -> int:
    """On a GPU the largest budget that fits. On a CPU the default: there larger batches fit, but gain nothing.

    Raises:
        UsageError: the model is split over ranks, which cannot try what may fail on one of them alone.
    """
    device = job.trainer.strategy.root_device
    if job.in_step:
        raise UsageError(
            "datamodule.tokens_per_batch=auto tries until memory is out, which the ranks of one split model cannot: "
            "give a number."
        )
    if device.type != "cuda":
        return job.datamodule.tokens_per_batch
    module = AttributionModule(job.model, job.extractor, layers)

    def fits(batch: Batch) -> bool:
        try:
            module.extract_whole(batch.to(device))
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    total = len(job.datamodule.source("train"))
    rows = np.unique(np.linspace(0, total - 1, min(job.datamodule.window, total)).astype(int)).tolist()
    found = largest_budget(job.datamodule, rows, fits)
    torch.cuda.reset_peak_memory_stats()  # what was tried is not what the run takes
    return found


def largest_budget(datamodule: Any, rows: Sequence[int], fits: Callable[[Batch], bool]) -> int:
    """Doubles (or, where that does not fit, halves) the data module's budget; the largest whose batches all fit.

    A budget is judged by its largest batch. More than the rows, one window of the plan, are never together in a batch:
    where all are, there is no point in more.

    Args:
        fits: whether a batch can be computed.
    """
    budget, failed = datamodule.tokens_per_batch, None
    fitting = 0
    while budget != failed and budget != fitting:
        datamodule.tokens_per_batch = budget
        batches = list(datamodule.batches("train", rows))
        if fits(max(batches, key=lambda batch: batch.input_ids.numel())):
            fitting = budget
            budget = budget if len(batches) == 1 else 2 * budget
        else:
            failed = budget
            budget = max(fitting, budget // 2, 1)
    return fitting or 1
