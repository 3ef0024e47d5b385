"""Two real ranks of which one fails, dies, hangs or is stopped: the run ends soon, and its reason is the last word."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lightning import Trainer
from torch import distributed

from rept.distributed.children import PARENT
from rept.distributed.collectives import GO_ON, Lost, joining, meet
from rept.distributed.ranks import started_outside
from rept.distributed.watch import RankFailed
from tests.helpers.commands import ROOT, environment

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
    "Ctrl-C": (130, "Stopped by SIGINT; what was computed is stored. "),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")
@pytest.mark.parametrize("half", [0, 1])
def test_the_run_ends_with_the_reason_of_the_rank(tmp_path, half):
    """Half of the faults each: one process makes them all, so that torch is imported once."""
    names = list(ENDS)[half::2]
    command = [sys.executable, "tests/helpers/faults.py", str(tmp_path), str(MAX_WAIT), str(GRACE), *names]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [run["name"] for run in found] == names
    for run in found:
        code, words = ENDS[run["name"]]
        assert run["code"] == code, run
        assert run["words"].strip().splitlines()[-1].startswith(words), run
        waits = MAX_WAIT + 2 * GRACE if "hangs" in words else 0
        assert run["seconds"] < 30 + waits and run["alone"] < 5, run
        assert run["shards"] and not run["index"], "whole shards are kept, and no index is written"


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


@pytest.mark.parametrize(
    ("variables", "outside"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", PARENT: "7"}, False),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"},
            True,
        ),
    ],
    ids=["the first", "its child", "torchrun's"],
)
def test_all_ranks_are_of_one_mind_whether_they_meet_at_the_beginning(monkeypatch, variables, outside):
    """Or one waits for a broadcast that another never sends."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    nodes = {"num_nodes": 2, "devices": 1} if outside else {"devices": 2}
    trainer = Trainer(accelerator="cpu", strategy="ddp", logger=False, enable_checkpointing=False, **nodes)
    assert started_outside(trainer) is outside


def test_nodes_that_do_not_join_are_told_in_a_sentence():
    with pytest.raises(Lost, match=r"Rank 0 waited up to 90 s \(max_wait\) for all nodes to join"), joining(90):
        raise distributed.DistNetworkError("Failed to recv, got 0 bytes")
