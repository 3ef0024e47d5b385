"""What all command lines share: exit codes, and what is said where a command does not end well."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rept.__main__ import dispatch
from rept.cli import main


def test_ctrl_c_promises_nothing_about_what_is_stored(capsys):
    """It may come between two runs of a comparison, in a ranking, or in a training with checkpoints."""

    def run(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    assert main(None, "usage", run, []) == 130
    assert capsys.readouterr().err == "Stopped; run the same command again to resume, or to start over.\n"


@pytest.mark.parametrize("command", ["attribute.py", "train.py"])
def test_help_ends_quietly_where_the_reader_stops_reading(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, command, "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (
            "score",
            {"scorer", "behaviours", "behaviour_scorer", "top_k", "bottom_k", "each", "calibration", "max_wait", "out"},
        ),
        ("approximate", {"scorer", "top_k", "out"}),
    ],
)
def test_help_lists_only_the_keys_that_can_be_set(command: str, keys: set[str], capsys) -> None:
    assert dispatch([command, "--help"]) == 0
    listed = [line.split("=")[0].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {key.partition(".")[0] for key in listed if not key.startswith("python")} == keys
