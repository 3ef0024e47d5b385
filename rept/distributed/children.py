"""The ranks of one machine that Lightning starts as children of the first: they watch one another.

Lightning's own observer would kill the first without a word, and nobody would look after the children of a first rank
that died.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rept.distributed import watch
from rept.distributed.collectives import GO_ON, Lost
from rept.distributed.signals import StopBetweenBatches, Stopped
from rept.distributed.watch import RankFailed, Watch, exit_code, reason
from rept.errors import UsageError

PARENT = "REPT_PARENT"  # environment variable: the process that started this rank


@contextmanager
def watched_children(trainer: Trainer, notes: Path, stop: StopBetweenBatches) -> Iterator[None]:
    """On a rank that Lightning starts or that starts others: while the block runs, the ranks watch one another.

    Args:
        trainer: whose launcher starts the other ranks.
        notes: a folder where ranks leave their reason for the first to tell.
        stop: brings this rank to an end after its batch.

    Raises:
        RankFailed: another rank ended before its time.
    """
    if rank_zero_only.rank:
        with _child(int(os.environ[PARENT]), _note(notes, rank_zero_only.rank)):
            yield
    else:
        with _Children(trainer, notes, stop).watched():
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
            time.sleep(watch.GRACE)  # rank 0 may know who it was, and ends this one
        note.write_text(reason(rank_zero_only.rank, error), encoding="utf-8", errors="replace")
        if isinstance(error, UsageError | Stopped):
            raise SystemExit(exit_code(error)) from error
        raise


def _follow(parent: int) -> None:
    """Ends this process at once when its parent is gone: the folder's lock went with it, and a new run may begin."""
    while os.getppid() == parent:
        time.sleep(0.2)
    if os.environ.get("LOCAL_RANK") == "1":  # one is enough to tell it
        print(f"Rank 0 has died. {GO_ON}", file=sys.stderr, flush=True)
    os._exit(1)


class _Children(Watch):
    """The processes that Lightning started on this machine."""

    processes: ClassVar[dict[int, subprocess.Popen[bytes]]] = {}  # by rank; a script's later runs go on with them

    def __init__(self, trainer: Trainer, notes: Path, stop: StopBetweenBatches) -> None:
        super().__init__(stop)
        self._launcher: Any = trainer.strategy.launcher
        self._ranks = range(trainer.global_rank + 1, trainer.global_rank + trainer.num_devices)
        self._notes = notes
        os.environ[PARENT] = str(os.getpid())

    def _watch(self) -> None:
        while not self.processes:
            if len(self._launcher.procs) == len(self._ranks):
                self.processes.update(zip(self._ranks, self._launcher.procs, strict=True))
                self._launcher.procs.clear()  # out of sight of Lightning's observer
                atexit.register(self._end)
            elif self._over.wait(0.1):
                return
        while not self._over.wait(0.2):
            ended = ((rank, process.poll()) for rank, process in self.processes.items())
            failed = next(((rank, code) for rank, code in ended if code), None)
            if failed is not None:
                self._fail(RankFailed(*failed, self._words(failed[0])))
                return

    def _words(self, rank: int) -> str:
        note = _note(self._notes, rank)
        return note.read_text(encoding="utf-8").strip() if note.is_file() else ""

    def _tell(self, error: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        """Lets the children close their shards, but not for long."""
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + watch.GRACE
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes.values()):
            time.sleep(0.1)
        for process in self.processes.values():
            process.kill()
            process.wait()
        for rank in self._ranks:
            _note(self._notes, rank).unlink(missing_ok=True)
