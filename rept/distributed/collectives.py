"""Collective operations over the ranks of a run, with timeouts that name the missing ranks."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch import distributed

from rept.errors import RESUME, RankMissing

T = TypeVar("T")


def process() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks; (0, 1) before they have joined."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def barrier(seconds: float) -> None:
    """Waits until every rank arrives; returns at once if there is only one.

    Raises RankMissing if another rank does not arrive within ``seconds``, or the connection to it breaks.
    """
    any_rank(False, seconds)


def any_rank(own: bool, seconds: float) -> bool:
    """Returns whether ``own`` is true on any rank; a `barrier` for all of them."""
    rank, ranks = process()
    if ranks == 1:
        return own
    start, flag = time.monotonic(), torch.tensor(int(own))
    limit = seconds + min(seconds, 60.0) if rank else seconds  # rank 0 is first to report, as it knows who is missing
    try:
        group = _gloo_group(limit)
        distributed.monitored_barrier(group, timedelta(seconds=limit), wait_all_ranks=True)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group)
    except RuntimeError as error:
        if time.monotonic() - start < limit:
            raise RankMissing(f"Rank {rank} lost its connection to another rank. {RESUME}", exit_code=1) from error
        missing = re.search("Ranks (.*) failed", str(error))  # "Ranks 1, 3 failed to pass monitoredBarrier in ..."
        name = "0, or one that it waits for," if rank else missing[1] if missing else "other than 0"
        reason = f"Rank {name} hangs: rank {rank} waited {limit:,g} s (max_wait; raise it if it was only slow)."
        raise RankMissing(f"{reason} {RESUME}") from error
    return bool(flag)


@cache
def _gloo_group(seconds: float) -> distributed.ProcessGroup | None:
    """Returns a group of all ranks: gloo alone names missing ranks, and only rank 0 takes the timeout of a call."""
    group: distributed.ProcessGroup | None = distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    return group


def gathered(own: T) -> list[T]:
    """Returns the values of all ranks, by rank."""
    values = [own] * process()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, own)
    return values
