"""Where ranks wait for one another, and how long: one that comes too late, or never, is named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import distributed

from rept.errors import UsageError

STARTING = 60.0  # seconds at least in which ranks must have joined: loading a model takes longer than a batch
GO_ON = "What whole shards hold is kept; give the same command again to go on."


def to_join(max_wait: float) -> float:
    """Seconds in which ranks must have joined."""
    return max(max_wait, STARTING)


class Lost(UsageError):
    """A rank waited for the others in vain."""


def process() -> tuple[int, int]:
    """This process's rank and their number, as far as processes were started."""
    started = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)


def meet(seconds: float) -> None:
    """Waits until every rank is here; returns at once where there is but one.

    Raises:
        Lost: another rank did not come within ``seconds``, or is gone.
    """
    any_rank(False, seconds)


def any_rank(own: bool, seconds: float) -> bool:
    """Waits as `meet` does, and says whether ``own`` is true on any rank."""
    if process()[1] == 1:
        return own
    start, told = time.monotonic(), torch.tensor(int(own))
    try:
        group = _group(seconds)
        distributed.monitored_barrier(group, timedelta(seconds=seconds), wait_all_ranks=True)
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group)
    except RuntimeError as error:
        rank = distributed.get_rank()
        if time.monotonic() - start < seconds:
            raise Lost(f"Rank {rank} lost its connection to another. {GO_ON}") from error
        missing = _named(str(error)) if rank == 0 else "0"
        raise Lost(
            f"Rank {missing} hangs: rank {rank} waited {seconds:,g} s for it (max_wait; raise it if that was only "
            f"slow). {GO_ON}"
        ) from error
    return bool(told)


@cache
def _group(seconds: float) -> distributed.ProcessGroup:
    """All ranks, as a group of their own: only gloo can tell who is missing, and only rank 0 heeds a call's timeout."""
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


@contextmanager
def joining(seconds: float) -> Iterator[None]:
    """Where the ranks of several nodes come together, and one that failed before it could is told of in a sentence.

    Raises:
        Lost: they did not come together within ``seconds`` (a minute at least, see `end_together`).
    """
    try:
        yield
    except distributed.DistError as error:
        raise Lost(
            f"Rank {rank_zero_only.rank} waited up to {to_join(seconds):,g} s (max_wait) for all nodes to join, "
            f"but one did not, or ended: its own last words tell why. {GO_ON}"
        ) from error


def gathered(own: Any) -> list[Any]:
    """What each rank has, by rank."""
    everyone = [own] * process()[1]
    if len(everyone) > 1:
        distributed.all_gather_object(everyone, own)
    return everyone


class MeetFirst(Callback):
    """Makes the group in which ranks meet where Lightning has just brought them together: none can be lost yet."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        meet(self._seconds)


def _named(error: str) -> str:
    """The missing ranks in gloo's words: "[Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 5000 ms"."""
    _, found, rest = error.partition("Ranks ")
    return rest.partition(" failed")[0] if found else "other than 0"
