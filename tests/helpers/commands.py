"""Real processes: the command lines as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 120


def environment(**more: str) -> dict[str, str]:
    """One thread a process, so that results can be compared bit for bit, and no hub."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"} | more


def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """``python attribute.py ...`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a finished command."""
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
