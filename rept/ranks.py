"""Ranks end together: where one fails, dies or hangs, the others stop, and its reason is the run's last word.

Lightning starts the ranks of a machine as children of the first. Its own observer would kill that one without a word,
and nobody would look after the children of a first rank that died; so the first rank watches its children here, and
they watch it. Ranks started by torchrun or SLURM are watched by these.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import distributed

from rept.errors import UsageError
from rept.stopping import StopBetweenBatches, Stopped

GRACE = 10.0  # seconds in which a rank may finish its batch and close its shard before it is ended by force
STARTING = 60.0  # seconds at least in which ranks must have joined: loading a model takes longer than a batch
GO_ON = "What whole shards hold is kept; give the same command again to go on."
PARENT = "REPT_PARENT"  # environment variable: the process that started this rank


class RankFailed(BaseException):
    """Another rank ended before its time. No Exception, for the same reason as `Stopped`."""

    def __init__(self, rank: int, code: int, note: str) -> None:
        way = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        super().__init__(note or f"Rank {rank} {way}. {GO_ON}")
        self.exit_code = code if code > 0 else 128 - code


class Lost(UsageError):
    """A rank waited for the others in vain."""


def started_outside(trainer: Trainer) -> bool:
    """Whether torchrun or SLURM has started the ranks, and not the first of them (whose children Lightning takes for
    such as well, by the environment variables that it gives them)."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally and PARENT not in os.environ


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
            f"Rank {rank_zero_only.rank} waited up to {max(seconds, STARTING):,g} s (max_wait) for all nodes to join, "
            f"but one did not, or ended: its own last words tell why. {GO_ON}"
        ) from error


class _MeetFirst(Callback):
    """Makes the group in which ranks meet where Lightning has just brought them together: none can be lost yet."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        meet(self._seconds)


def _named(error: str) -> str:
    """The missing ranks in gloo's words: "[Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 5000 ms"."""
    _, found, rest = error.partition("Ranks ")
    return rest.partition(" failed")[0] if found else "other than 0"


@contextmanager
def end_together(trainer: Trainer, notes: Path, stop: StopBetweenBatches, max_wait: float) -> Iterator[None]:
    """While the block runs, the ranks of this machine are watched; when it ends, they all do.

    Args:
        trainer: whose launcher starts the other ranks, if there are any.
        notes: a folder where ranks leave their reason for the first to tell.
        stop: brings this rank to an end after its batch.
        max_wait: seconds, as for `meet`.

    Raises:
        RankFailed: another rank ended before its time.
    """
    trainer.callbacks.append(_MeetFirst(max_wait))
    if hasattr(trainer.strategy, "_timeout"):  # of Lightning's start, and of what its backend waits for later
        trainer.strategy._timeout = timedelta(seconds=max(max_wait, STARTING))
    if rank_zero_only.rank and PARENT in os.environ:
        with _child(int(os.environ[PARENT]), _note(notes, rank_zero_only.rank)):
            yield
    elif trainer.num_devices > 1 and hasattr(trainer.strategy.launcher, "procs"):
        with _Children(trainer, notes, stop).watched():
            yield
    else:
        yield


def _note(folder: Path, rank: int) -> Path:
    return folder / f".rank-{rank:03d}"


@contextmanager
def _child(parent: int, note: Path) -> Iterator[None]:
    """A rank that rank 0 speaks for: what is told in a sentence is left as a note; tracebacks are shown here."""
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Lost):
            time.sleep(GRACE)  # rank 0 may know who it was, and ends this one
        told = isinstance(error, UsageError | Stopped)
        fault = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")
        said = str(error) if told else f"{fault}. {GO_ON}"
        note.write_text(f"Rank {rank_zero_only.rank}: {said}", encoding="utf-8", errors="replace")
        if told:
            raise SystemExit(getattr(error, "exit_code", 2)) from error
        raise


def _follow(parent: int) -> None:
    """Ends this process at once when its parent is gone: the folder's lock went with it, and a new run may begin."""
    while os.getppid() == parent:
        time.sleep(0.2)
    if os.environ.get("LOCAL_RANK") == "1":  # one is enough to tell it
        print(f"Rank 0 has died. {GO_ON}", file=sys.stderr, flush=True)
    os._exit(1)


class _Children:
    """The processes that Lightning started on this machine, watched by a thread."""

    def __init__(self, trainer: Trainer, notes: Path, stop: StopBetweenBatches) -> None:
        self._launcher: Any = trainer.strategy.launcher
        self._ranks = range(trainer.global_rank + 1, trainer.global_rank + trainer.num_devices)
        self._notes, self._stop = notes, stop
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._fault: RankFailed | None = None
        self._failed, self._over = threading.Event(), threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        os.environ[PARENT] = str(os.getpid())
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        except Exception as error:
            # A connection breaks where the other end has died; which it was is known a moment later.
            if self._failed.wait(2) and self._fault is not None:
                raise self._fault from error
            raise
        else:
            self._over.set()
            self._wait()
        finally:
            self._over.set()
            self._end()

    def _watch(self) -> None:
        """Runs beside the main thread until it is over. A rank's failure stops that between batches, or by force."""
        while len(self._launcher.procs) < len(self._ranks):
            if self._over.wait(0.1):
                return
        self._processes = dict(zip(self._ranks, self._launcher.procs, strict=True))
        self._launcher.procs.clear()  # out of sight of Lightning's observer
        while not self._over.wait(0.2):
            ended = ((rank, process.poll()) for rank, process in self._processes.items())
            failed = next(((rank, code) for rank, code in ended if code), None)
            if failed is not None:
                self._fail(*failed)
                return

    def _fail(self, rank: int, code: int) -> None:
        note = _note(self._notes, rank)
        self._fault = RankFailed(rank, code, note.read_text(encoding="utf-8").strip() if note.is_file() else "")
        self._stop.ask(self._fault)
        self._failed.set()
        if not self._over.wait(GRACE):
            self._kill()
            print(self._fault, file=sys.stderr, flush=True)
            os._exit(self._fault.exit_code)

    def _end(self) -> None:
        """Lets the children close their shards, but not for long."""
        for process in self._processes.values():
            process.terminate()
        self._wait()
        self._kill()
        for rank in self._ranks:
            _note(self._notes, rank).unlink(missing_ok=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(process.poll() is None for process in self._processes.values()):
            time.sleep(0.1)

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
