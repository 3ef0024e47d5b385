"""Runs attribute.py in forked processes, which saves the seconds that starting Python and importing torch takes.

Everything is imported once, and each run is a fork of this process; so are the additional ranks that Lightning starts.
Such runs behave, and can be killed, like any other process. Import this module before anything is computed.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TOKENIZERS_PARALLELISM": "false"}

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies.launchers import subprocess_script

from datamodules import instructions
from extractors.layers import phase_transition
from extractors.sites import residual_stream
from rept.cli import main
from rept.commands import attribute
from rept.run import pipeline
from scorers import cosine

NEEDED = (instructions, phase_transition, residual_stream, pipeline, cosine)  # imported by name in a run


class Forked:
    """A run in a forked process, with the part of Popen's interface that Lightning and RepT use."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path | None = None, **_: object) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(command[1:], env, log))

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self) -> int | None:
        return self._collect(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _collect(self, options: int) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode


def start(arguments: Sequence[str], log: Path, **environment: str) -> Forked:
    """Starts ``python attribute.py ARGUMENTS`` in a new session, with its output in ``log``."""
    return Forked(["python", *arguments], os.environ | environment, log)


def members(session: int) -> list[int]:
    """The processes of a session that have not ended (Linux only)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = path.read_text().split(" (", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, its_session, *_ = rest.rpartition(") ")[2].split()
        if int(its_session) == session and state != "Z":
            found.append(int(pid))
    return sorted(found)


def wait_until_gone(session: int, seconds: float = 60) -> float:
    """Waits until no process of a session is left, and returns the seconds that took."""
    begin = time.monotonic()
    while members(session):
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"processes {members(session)} are still running after {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - begin


def _run(arguments: Sequence[str], env: Mapping[str, str], log: Path | None) -> int:
    atexit._clear()  # exit handlers of the parent process must not run in this one
    os.environ.clear()
    os.environ.update(env)
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))
    if log is not None:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.closerange(3, 1024)  # as Popen does: a child must not keep the run folder's lock
    sys.argv = ["attribute.py", *arguments]
    try:
        return main("attribute", attribute.USAGE, attribute.run)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


# From here on Lightning starts ranks as forks too, in any process that imports this module: import it in scripts only.
subprocess_script.subprocess = SimpleNamespace(Popen=Forked)
subprocess_script._basic_subprocess_cmd = lambda: sys.argv
