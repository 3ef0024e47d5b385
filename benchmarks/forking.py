"""Runs commands in forked processes, which saves the seconds that starting Python and importing torch takes.

Everything is imported once, and each run is a fork of this process; so are the ranks that Lightning or torchrun start.
Such runs behave, and can be killed, like any other process. Import this module before anything is computed.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TOKENIZERS_PARALLELISM": "false"}

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from datamodules import instructions
from extractors.layers import phase_transition
from extractors.sites import residual_stream
from rept.commands import attribute
from rept.run import pipeline
from scorers import adaptive, cosine

# What a run imports by name, or late.
NEEDED = (attribute, instructions, phase_transition, residual_stream, pipeline, adaptive, cosine)
ROOT = Path(__file__).parent.parent


class Forked:
    """``python COMMAND`` in a forked process, with the part of Popen's interface that its callers use."""

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        log: Path | None = None,
        start_new_session: bool = False,
        **_: object,
    ) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            run(args[1:], env, log, log)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float = 1e9) -> int | None:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("python", timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], log: Path, **environment: str) -> Forked:
    """Starts ``python attribute.py ARGUMENTS`` in a new session, with its output in ``log``."""
    return Forked(["python", "attribute.py", *arguments], os.environ | environment, log, start_new_session=True)


def run(command: Sequence[str], env: Mapping[str, str], out: Path | None = None, err: Path | None = None) -> NoReturn:
    """Makes this process ``python COMMAND``, a script or ``-m`` and a module, with these environment variables."""
    atexit._clear()  # exit handlers of the parent process must not run in this one
    os.environ.clear()
    os.environ.update(env)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive a further fork
    os.chdir(ROOT)
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))
    for number, path in ((1, out), (2, err)):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.closerange(3, 1024)  # as Popen does: a child must not keep the run folder's lock
    script, *sys.argv = [word for word in command if word != "-u"]
    try:
        if script == "-m":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv.insert(0, script)
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


# From here on Lightning and torchrun start ranks as forks too, in any process that imports this module: import it in
# scripts only.
subprocess_handler.Popen = Forked
subprocess_script.subprocess = SimpleNamespace(Popen=Forked)
subprocess_script._basic_subprocess_cmd = lambda: ["python", *sys.argv]
