"""Commands as forks of a process that has imported everything: they start in milliseconds instead of seconds.

Only where the start itself is tested does a command need a process of its own (`tests.helpers.commands`).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.commands import SECONDS, environment

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.forking"])


class Fork:
    """``python ARGUMENTS`` in a session of its own, with the part of Popen's interface that tests use."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._files.name) / name for name in ("out", "err"))
        self._process = _CONTEXT.Process(target=_run, args=(list(arguments), dict(env), self._out, self._err))
        self._process.start()
        self.pid = self._process.pid
        atexit.register(self._kill)  # before multiprocessing waits for it

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float = 2 * SECONDS) -> tuple[str, str]:
        """Output and errors, once the process has ended; its files are removed."""
        self._process.join(timeout)
        ended = self.returncode is not None
        self._kill()
        out, err = (path.read_text() if path.exists() else "" for path in (self._out, self._err))
        self._files.cleanup()
        if not ended:
            raise subprocess.TimeoutExpired("python", timeout, out, err)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _kill(self) -> None:
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


def start(*arguments: str, **more: str) -> Fork:
    """As `tests.helpers.commands.start`."""
    return Fork(arguments, environment(**more))


def finish(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a finished command."""
    process = start(*arguments, **more)
    out, err = process.communicate()
    return process.returncode, out, err


def _run(arguments: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> None:
    assert "benchmarks.forking" in sys.modules, "the process that is forked was not started in the project's folder"
    from benchmarks import forking  # imported here only: it changes how Lightning starts processes

    os.setsid()
    forking.run(arguments, env, out, err)
