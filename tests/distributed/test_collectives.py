"""Barriers: at once for a single rank, with a timeout that names the missing ranks for several."""

from __future__ import annotations

import json
import subprocess
import sys

from torch import distributed

from rept.distributed.collectives import any_rank, barrier, gathered, process
from tests.helpers.commands import ROOT, environment

THREE_RANKS = """
import json, os, sys, time
from torch import distributed
from rept.distributed import collectives
from rept.errors import RankMissing

rank = 0
for other in (1, 2):
    if rank == 0 and os.fork() == 0:
        rank = other
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=3)
found = [collectives.process(), collectives.gathered(rank * rank)]
found += [collectives.any_rank(rank == one, 4) for one in (1, 7)]
if rank == 2:
    time.sleep(9)  # while the others wait
else:
    try:
        collectives.barrier(4)
    except RankMissing as missing:
        found.append(str(missing))
os.write(1, json.dumps(found).encode() + b"\\n")  # in one write: the lines of the ranks must not mix
os._exit(0)
"""


def test_a_single_rank_waits_for_nobody():
    assert not distributed.is_initialized() and process() == (0, 1)
    barrier(1e-9)
    assert any_rank(True, 1e-9) and not any_rank(False, 1e-9)
    assert gathered("own") == ["own"]


def test_a_rank_that_hangs_is_named(tmp_path):
    command = [sys.executable, "-c", THREE_RANKS, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ranks = sorted(map(json.loads, done.stdout.splitlines()))
    assert [found[:4] for found in ranks] == [[[rank, 3], [0, 1, 4], True, False] for rank in range(3)]
    assert ranks[0][4].startswith("Rank 2 hangs: rank 0 waited 4 s (max_wait; raise it if it was only slow). ")
    assert ranks[1][4].startswith("Rank 1 lost its connection to another rank. "), "it must not name rank 0 instead"
