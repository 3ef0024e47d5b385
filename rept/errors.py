"""The exceptions that a command line reports as one sentence."""

from __future__ import annotations

import signal

RESUME = "Whole shards are kept; run the same command again to resume."


class UsageError(Exception):
    """A user's mistake: one sentence with what was expected, what came, and what to do.

    Command lines print it on stderr without a traceback and exit with 2; Python callers may catch it.
    """

    exit_code = 2


class Ended(BaseException):
    """Ends the process with ``exit_code``, after one sentence on stderr.

    Not an Exception, so that nothing on the way takes it for a failure that it could handle.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CheckFailed(Ended):
    """`python -m rept verify` found a fault; its table shows which."""


class Stopped(Ended):
    """A signal asked the run to stop.

    Attributes:
        of_all: whether all ranks get it, as a terminal interrupts all of its processes.
    """

    def __init__(self, number: int) -> None:
        self.of_all = number == signal.SIGINT
        name = signal.Signals(number).name
        message = f"Stopped by {name}; what was computed is stored. Run the same command again to resume."
        super().__init__(message, 128 + number)


class RankFailed(Ended):
    """Another rank failed or died."""


class RankMissing(Ended):
    """Another rank did not arrive in time, or the connection to it broke."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message, exit_code)
