"""Ranks end together: where one fails, dies or hangs, the others stop, and its reason is the run's last word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

from lightning import Trainer

from rept.distributed.children import PARENT, watched_children
from rept.distributed.collectives import MeetFirst, to_join
from rept.distributed.lines import Lines
from rept.distributed.signals import StopBetweenBatches


def started_outside(trainer: Trainer) -> bool:
    """Whether torchrun or SLURM has started the ranks, and not the first of them (whose children Lightning takes for
    such as well, by the environment variables that it gives them)."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally and PARENT not in os.environ


def over_nodes(trainer: Trainer, stop: StopBetweenBatches, max_wait: float) -> AbstractContextManager[None]:
    """While the block runs, the ranks that torchrun or SLURM has started watch one another, see `rept.distributed.lines`.

    Entered before all that could fail on one rank alone. Arguments and what is raised: as for `end_together`.
    """
    if trainer.world_size > 1 and started_outside(trainer):
        return Lines(trainer, stop, timedelta(seconds=to_join(max_wait))).watched()
    return nullcontext()


@contextmanager
def end_together(trainer: Trainer, notes: Path, stop: StopBetweenBatches, max_wait: float) -> Iterator[None]:
    """While the block runs, the ranks that Lightning starts on this machine are watched; when it ends, they all do.

    Args:
        trainer: of the run.
        notes: a folder where ranks leave their reason for the first to tell.
        stop: brings this rank to an end after its batch.
        max_wait: seconds, as for `rept.distributed.collectives.meet`.

    Raises:
        RankFailed: another rank ended before its time.
    """
    trainer.callbacks.append(MeetFirst(max_wait))
    if hasattr(trainer.strategy, "_timeout"):  # of Lightning's start, and of what its backend waits for later
        trainer.strategy._timeout = timedelta(seconds=to_join(max_wait))
    if trainer.num_devices > 1 and hasattr(trainer.strategy.launcher, "procs") and not started_outside(trainer):
        with watched_children(trainer, notes, stop):
            yield
    else:
        yield
