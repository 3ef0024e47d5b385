"""A rank that watches others, and ends when one of them does before its time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rept.distributed.collectives import GO_ON, Lost
from rept.distributed.signals import StopBetweenBatches, Stopped
from rept.errors import Ended, UsageError

GRACE = 10.0  # seconds in which a rank may finish its batch and close its shard before it is ended by force


class RankFailed(Ended):
    """Another rank ended before its time. No Exception, for the same reason as `Stopped`."""

    def __init__(self, rank: int, code: int, note: str) -> None:
        way = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        super().__init__(note or f"Rank {rank} {way}. {GO_ON}")
        self.exit_code = code if code > 0 else 128 - code


def reason(rank: int, error: BaseException) -> str:
    """Why a rank ends, for the last words of the run."""
    if isinstance(error, RankFailed):
        return str(error)
    fault = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")
    told = isinstance(error, UsageError | Stopped)  # in a sentence
    return f"Rank {rank}: {error if told else f'{fault}. {GO_ON}'}"


def exit_code(error: BaseException) -> int:
    """With what code a process ends by ``error``, see `rept.cli`."""
    return getattr(error, "exit_code", 2 if isinstance(error, UsageError) else 1)


class Watch:
    """What ends this rank when another has failed: between batches, or by force."""

    def __init__(self, stop: StopBetweenBatches) -> None:
        self._stop = stop
        self._fault: RankFailed | None = None
        self._failed, self._over = threading.Event(), threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The watch goes on, in a thread, while the block runs."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        except BaseException as error:
            # A connection breaks where the other end has died; which it was is known a moment later.
            if self._failed.wait(_echo(error)) and self._fault is not None:
                self._tell(self._fault)
                raise self._fault from error
            self._tell(error)
            raise
        else:
            self._done()
        finally:
            self._over.set()

    def _watch(self) -> None:
        """Runs beside the main thread until that is over."""
        raise NotImplementedError

    def _tell(self, error: BaseException) -> None:
        """Lets the other ranks know why this one ends."""

    def _done(self) -> None:
        """Lets the other ranks know that this one is through."""

    def _fail(self, fault: RankFailed) -> None:
        self._fault = fault
        self._stop.ask(fault)
        self._failed.set()
        if not self._over.wait(GRACE):
            self._tell(fault)
            print(fault, file=sys.stderr, flush=True)
            os._exit(fault.exit_code)


def _echo(error: BaseException) -> float:
    """Seconds in which ``error`` may turn out to be but the echo of another rank's failure."""
    if isinstance(error, Lost):
        return GRACE
    return 2 if isinstance(error, Exception) and not isinstance(error, UsageError) else 0
