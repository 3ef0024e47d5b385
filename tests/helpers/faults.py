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

# What happens to a rank, by the words after its number. A "node" is a rank in a session of its own, as torchrun starts
# them on two nodes; here without torchrun.
KINDS = {
    "raises": "raise", "is refused": "refuse", "is killed": "kill", "is paused": "pause", "never returns": "sleep",
    "gets SIGTERM": "terminate",
}  # fmt: skip
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "terminate": signal.SIGTERM}


def fault_of(name: str) -> dict[str, str]:
    """The variables of a fault: at the rank's fourth training batch, or ("early", "is refused") before it joins."""
    if name == "Ctrl-C":  # of all ranks, as a terminal does it
        return {"FAULT": "interrupt", "FAULT_RANK": "0", "FAULT_PLACE": "batch"}
    if name == "rank 0 is killed early":  # by its child
        return {"FAULT": "kill parent", "FAULT_RANK": "1", "FAULT_PLACE": "load"}
    _, rank, words = name.removesuffix(" early").split(" ", 2)
    place = "load" if name.endswith((" early", "is refused")) else "batch"
    return {"FAULT": KINDS[words], "FAULT_RANK": rank, "FAULT_PLACE": place}


def fail() -> None:
    kind = os.environ["FAULT"]
    if kind == "raise":
        raise RuntimeError("out of patience.\nDetails follow.")
    if kind == "refuse":
        raise UsageError("There is no such file.")
    if kind == "interrupt":
        os.killpg(0, signal.SIGINT)
    elif kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
    else:
        if kind == "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)


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
        out, log = folder / name.replace(" ", "-"), folder / f"{name}.log"
        begin = time.monotonic()
        arguments = [*soak.command(folder, out, 2), f"max_wait={max_wait}"]
        fault = fault_of(name)
        runs = start(arguments, log, name.startswith("node"), **fault)
        codes = [run.wait() for run in runs]
        after = max(forking.wait_until_gone(run.pid) for run in runs)
        seconds = time.monotonic() - begin
        logs = [path.read_text() for path in sorted(folder.glob(f"{name}.log*"))]
        ended = {"name": name, "place": fault["FAULT_PLACE"], "codes": codes, "seconds": seconds, "alone": after}
        ended |= {"logs": logs, "index": (out / "store/train/index.h5").exists()}
        ended["shards"] = soak.number_of_shards(out)
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
