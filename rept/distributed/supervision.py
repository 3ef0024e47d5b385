"""Ends all ranks of a run when one of them fails or dies, with its reason as the last message.

Ranks share the reason through the store of torch.distributed by which they have joined. Rank 0 supervises the ranks
that Lightning starts as its child processes; torchrun and SLURM supervise the ranks of a node.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not in __all__

from rept.distributed.collectives import barrier, process
from rept.distributed.signals import StopBetweenBatches
from rept.errors import RESUME, Ended, RankFailed, RankMissing, Stopped, UsageError

GRACE = 10.0  # seconds in which a rank may finish its batch and close its shard before it is ended by force
POLL = 0.2  # seconds between two checks of the other ranks
PARENT = "REPT_PARENT"  # environment variable: rank 0, if Lightning starts the ranks; otherwise the rank itself

_children: list[subprocess.Popen[bytes]] = []  # ranks that Lightning started here; all runs of a script use them
_runs = itertools.count()  # numbers the runs of a script, the same on every rank


@contextmanager
def supervised(trainer: Trainer, stop: StopBetweenBatches, max_wait: float) -> Iterator[None]:
    """Ends this rank, after its batch if possible, when another one fails or dies while the block runs.

    Raises:
        RankFailed, RankMissing: another rank failed, or did not join in time.
    """
    if trainer.world_size == 1:
        yield
        return
    strategy, launcher = trainer.strategy, trainer.strategy.launcher
    assert isinstance(strategy, ParallelStrategy)  # as all with several ranks
    if isinstance(launcher, _SubprocessScriptLauncher) and "procs" not in vars(launcher):
        raise RuntimeError("Expected Lightning's launcher to list its processes as procs, but it does not.")
    key, failed, over = f"rept/failure/{next(_runs)}", Future[RankFailed](), threading.Event()
    external = not isinstance(strategy.cluster_environment, LightningEnvironment)
    if external or not trainer.local_rank or PARENT not in os.environ:  # not from a run that started this program
        os.environ[PARENT] = str(os.getpid())

    def watch() -> None:
        while not failed.done() and not over.wait(POLL):
            if failure := _failure(trainer, key):
                failed.set_result(failure)
                stop.request(failure)
                _report(key, trainer.global_rank, failure)
                if not over.wait(GRACE):
                    _end_children()
                    if not trainer.local_rank:
                        print(failure, file=sys.stderr, flush=True)
                    os._exit(failure.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    try:
        if external:  # ranks of torchrun or SLURM join before anything that may fail on one of them alone
            strategy.connect(LightningModule())  # setup_environment expects one; predict sets its own
            strategy.setup_environment()
            barrier(max_wait)
        yield
    except BaseException as error:
        if isinstance(error, distributed.DistStoreError | distributed.DistNetworkError):
            error = RankMissing(f"Not all ranks joined within max_wait, or one of them ended. {RESUME}")
        if not (isinstance(error, UsageError) or isinstance(error, Stopped) and error.of_all):  # which all may raise
            with suppress(TimeoutError):  # an effect of another rank's failure is followed by the failure
                error = failed.result(0 if isinstance(error, Stopped) else 2)
        over.set()
        _report(key, trainer.global_rank, error)
        if not isinstance(error, UsageError):
            _end_children()
        if isinstance(error, Ended) and trainer.local_rank:
            raise SystemExit(error.exit_code) from error  # the first rank of the machine prints it
        raise error
    finally:
        over.set()


def _failure(trainer: Trainer, key: str) -> RankFailed | None:
    """Returns the failure of another rank, if there is one."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher) and len(launcher.procs) == trainer.num_devices - 1 > 0:
        _children.extend(launcher.procs)
        launcher.procs.clear()  # otherwise Lightning kills this process as soon as one of them fails
        atexit.register(_end_children)
    try:
        if (process()[1] > 1 or _orphaned() or any(child.poll() for child in _children)) and _store().check([key]):
            return RankFailed(*json.loads(_store().get(key)))
    except distributed.DistError:  # the store is a part of rank 0, or of its torchrun
        if not _children:  # ends at once, because rank 0's lock of the run folder is gone
            print(f"Rank 0 has died. {RESUME}", file=sys.stderr, flush=True)
            os._exit(1)
    for rank, child in enumerate(_children, trainer.global_rank + 1):
        if code := child.poll():
            way = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return RankFailed(f"Rank {rank} {way}. {RESUME}", code if code > 0 else 128 - code)
    return None


def _report(key: str, rank: int, error: BaseException) -> None:
    """Shares with all ranks why one of them ends; the first report counts."""
    reason, exit_code = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ") + f". {RESUME}", 1
    if isinstance(error, Ended | UsageError):
        reason, exit_code = str(error), error.exit_code
    if process()[1] > 1 or os.environ[PARENT] != str(os.getpid()):  # otherwise there may be no store yet
        with suppress(distributed.DistError):
            _store().compare_set(key, "", json.dumps([f"Rank {rank}: {reason}", exit_code]))
            time.sleep(5 * POLL)  # until the others have read it: the store may end with this process


@cache
def _store() -> TCPStore:
    """Returns a connection to the store by which the ranks join; raises DistNetworkError if it has ended."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    for _ in range(1 if _children else 30):  # rank 0 may load its model for minutes before it opens the store
        with suppress(distributed.DistError):
            if not _orphaned():
                store = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=GRACE))
                store.set_timeout(timedelta(minutes=5))  # a slow rank 0 has not ended
                return store
    raise distributed.DistNetworkError("no store")


def _orphaned() -> bool:
    """Returns whether rank 0, which has started this rank, has ended."""
    return os.environ[PARENT] not in (str(os.getpid()), str(os.getppid()))


def _end_children() -> None:
    """Waits for the child processes to end; after `GRACE` seconds they are killed."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(child.poll() is None for child in _children):
        time.sleep(POLL)
    for child in _children:
        child.kill()
