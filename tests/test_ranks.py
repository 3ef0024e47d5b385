"""Two real ranks of which one fails, dies, hangs or is stopped: the run ends soon, and its reason is the last word."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from torch import distributed

from rept.ranks import GO_ON, RankFailed, meet
from tests.commands import ROOT, environment

MAX_WAIT, GRACE = 2, 2  # seconds; the latter instead of ten
# Exit code and last line.
ENDS = {
    "rank 1 raises": (1, f"Rank 1: RuntimeError: out of patience. {GO_ON}"),
    "rank 0 raises": (1, "[rank0]: RuntimeError: out of patience"),
    "rank 1 is killed": (137, f"Rank 1 was killed by SIGKILL. {GO_ON}"),
    "rank 0 is killed": (-9, f"Rank 0 has died. {GO_ON}"),
    "rank 1 stands still": (2, f"Rank 1 hangs: rank 0 waited {MAX_WAIT} s for it (max_wait; raise it if "),
    "rank 0 never comes back": (2, f"Rank 1: Rank 0 hangs: rank 1 waited {MAX_WAIT} s for it (max_wait; raise it if "),
    "rank 1 is told to stop": (143, "Rank 1: Stopped by SIGTERM; what was computed is stored. "),
    "rank 0 is told to stop": (143, "Stopped by SIGTERM; what was computed is stored. "),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, dict]:
    """How the runs of tests/faults.py ended; one process makes them all, so that torch is imported once."""
    folder = str(tmp_path_factory.mktemp("faults"))
    command = [sys.executable, "tests/faults.py", folder, str(MAX_WAIT), str(GRACE), *ENDS]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")
@pytest.mark.parametrize("fault", ENDS)
def test_the_run_ends_with_the_reason_of_the_rank(ended, fault):
    code, words = ENDS[fault]
    found = ended[fault]
    assert found["code"] == code, found["words"]
    assert found["words"].strip().splitlines()[-1].startswith(words), found["words"]
    waits = MAX_WAIT + 2 * GRACE if "still" in fault or "never" in fault else 0
    assert found["seconds"] < 30 + waits and found["alone"] < 5
    assert found["shards"] and not found["index"], "whole shards are kept, and no index is written"


@pytest.mark.parametrize(
    ("code", "note", "words", "ends"),
    [
        (-9, "", "Rank 3 was killed by SIGKILL. ", 137),
        (-6, "", "Rank 3 was killed by SIGABRT. ", 134),
        (5, "", "Rank 3 ended with exit code 5. ", 5),
        (2, "Rank 3: no room.", "Rank 3: no room.", 2),
    ],
)
def test_the_words_of_a_rank_that_failed(code, note, words, ends):
    failed = RankFailed(3, code, note)
    assert str(failed) == (words if note else words + GO_ON) and failed.exit_code == ends


def test_one_rank_waits_for_nobody():
    assert not distributed.is_initialized()
    meet(1e-9)
