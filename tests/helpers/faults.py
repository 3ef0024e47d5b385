"""Runs of two ranks, one of which fails; prints how each run ended, as JSON lines.

python tests/helpers/faults.py FOLDER MAX_WAIT GRACE NAME ...
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import forking, soak  # isort: skip  before anything computes

from rept.distributed import supervision
from rept.errors import UsageError
from rept.run import prepare
from rept.signatures.module import AttributionModule
from tests.helpers.commands import free_port

# The rank, what happens to it, and where: at its fourth training batch ("batch") or before it joins ("load").
FAULTS = {
    "rank 1 raises": (1, "raise", "batch"),
    "rank 0 raises": (0, "raise", "batch"),
    "rank 1 is killed": (1, "kill", "batch"),
    "rank 0 is killed": (0, "kill", "batch"),
    "rank 1 is paused": (1, "pause", "batch"),
    "rank 0 never returns": (0, "sleep", "batch"),
    "rank 1 gets SIGTERM": (1, "terminate", "batch"),
    "rank 0 gets SIGTERM": (0, "terminate", "batch"),
    "Ctrl-C": (0, "interrupt", "batch"),  # of all ranks, as a terminal does it
    "rank 1 is refused": (1, "refuse", "load"),
    "rank 1 is killed early": (1, "kill", "load"),
    "rank 0 is killed early": (1, "kill parent", "load"),
    # Each rank in a session of its own, as torchrun starts them on two nodes; here without torchrun.
    "node 1 raises": (1, "raise", "batch"),
    "node 0 raises": (0, "raise", "batch"),
    "node 1 is killed": (1, "kill", "batch"),
    "node 0 is killed": (0, "kill", "batch"),
    "node 1 gets SIGTERM": (1, "terminate", "batch"),
    "node 0 is refused": (0, "refuse", "load"),
    "node 1 is killed early": (1, "kill", "load"),
}


def fail() -> None:
    kind = os.environ["FAULT"]
    if kind == "raise":
        raise RuntimeError("out of patience.\nDetails follow.")
    if kind == "refuse":
        raise UsageError("There is no such file.")
    if kind == "sleep":
        time.sleep(1000)
    if kind == "interrupt":
        os.killpg(0, signal.SIGINT)
        return
    if kind == "kill parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    numbers = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "terminate": signal.SIGTERM}
    os.kill(os.getpid(), numbers[kind])


def plant() -> None:
    """Makes the runs that are forks of this process fail as the variables FAULT, FAULT_RANK and FAULT_PLACE say."""
    extract, load, batches = AttributionModule.predict_step, prepare.load_configured, []

    def predict_step(self, batch, *rest):
        if batch.side == "train":
            batches.append(batch)
            time.sleep(0.02)
            here = os.environ.get("FAULT_RANK") == str(self.trainer.global_rank)
            if len(batches) == 4 and here and os.environ.get("FAULT_PLACE", "batch") == "batch":
                fail()
        return extract(self, batch, *rest)

    def load_configured(*arguments):
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        if os.environ.get("FAULT_PLACE") == "load" and os.environ["FAULT_RANK"] == rank:
            fail()
        return load(*arguments)

    AttributionModule.predict_step = predict_step
    prepare.load_configured = load_configured


def start(arguments: list[str], log: Path, nodes: bool, **fault: str) -> list[forking.Forked]:
    """Starts a run: its first process, or one for each node."""
    if not nodes:
        return [forking.start(arguments, log, **fault)]
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | fault
    arguments = [*arguments, "trainer.devices=1", "trainer.num_nodes=2", "trainer.strategy=ddp"]
    ranks = [{"RANK": rank, "GROUP_RANK": rank} for rank in "01"]
    return [forking.start(arguments, Path(f"{log}{rank['RANK']}"), **variables, **rank) for rank in ranks]


def main(folder: Path, max_wait: str, grace: str, *names: str) -> None:
    soak.make_material(folder)
    plant()
    supervision.GRACE, supervision._runs = float(grace), itertools.repeat(0)  # a fork would count its parent's runs
    for name in names:
        rank, kind, place = FAULTS[name]
        out, log = folder / name.replace(" ", "-"), folder / f"{name}.log"
        begin = time.monotonic()
        arguments = [*soak.command(folder, out, 2), f"max_wait={max_wait}"]
        fault = {"FAULT": kind, "FAULT_RANK": str(rank), "FAULT_PLACE": place}
        runs = start(arguments, log, name.startswith("node"), **fault)
        codes = [run.wait() for run in runs]
        after = max(forking.wait_until_gone(run.pid) for run in runs)
        seconds = time.monotonic() - begin
        logs = [path.read_text() for path in sorted(folder.glob(f"{name}.log*"))]
        ended = {"name": name, "place": place, "codes": codes, "seconds": seconds, "alone": after, "logs": logs}
        ended |= {"index": (out / "store/train/index.h5").exists(), "shards": soak.number_of_shards(out)}
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
