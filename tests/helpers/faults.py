"""Runs of two ranks of which one fails in the midst of the training rows; prints how each run ended, as JSON lines.

python tests/helpers/faults.py FOLDER MAX_WAIT GRACE NAME ...
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import forking, soak  # isort: skip  before anything computes

from rept.distributed import watch
from rept.signatures.module import AttributionModule

# The rank, and what befalls it at its fourth training batch.
FAULTS = {
    "rank 1 raises": (1, "raise"),
    "rank 0 raises": (0, "raise"),
    "rank 1 is killed": (1, "kill"),
    "rank 0 is killed": (0, "kill"),
    "rank 1 stands still": (1, "stop"),
    "rank 0 never comes back": (0, "sleep"),
    "rank 1 is told to stop": (1, "terminate"),
    "rank 0 is told to stop": (0, "terminate"),
    "Ctrl-C": (0, "interrupt"),  # of all ranks, as a terminal does it
}


def fault() -> None:
    what = os.environ["FAULT"]
    if what == "raise":
        raise RuntimeError("out of patience")
    if what == "sleep":
        time.sleep(1000)
    if what == "interrupt":
        os.killpg(0, signal.SIGINT)
        return
    numbers = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}
    os.kill(os.getpid(), numbers[what])


def plant() -> None:
    extract, batches = AttributionModule.predict_step, []

    def predict_step(self, batch, *rest):
        if batch.side == "train":
            batches.append(batch)
            time.sleep(0.02)
            if len(batches) == 4 and os.environ.get("FAULT_RANK") == str(self.trainer.global_rank):
                fault()
        return extract(self, batch, *rest)

    AttributionModule.predict_step = predict_step


def main(folder: Path, max_wait: str, grace: str, *names: str) -> None:
    soak.make_material(folder)
    plant()
    watch.GRACE = float(grace)
    for name in names:
        rank, what = FAULTS[name]
        out, log = folder / name.replace(" ", "-"), folder / "log"
        log.unlink(missing_ok=True)
        begin = time.monotonic()
        arguments = [*soak.command(folder, out, 2), f"max_wait={max_wait}"]
        run = forking.start(arguments, log, FAULT=what, FAULT_RANK=str(rank))
        code = run.wait()
        after = forking.wait_until_gone(run.pid)
        seconds = time.monotonic() - begin
        ended = {"name": name, "code": code, "seconds": seconds, "alone": after, "words": log.read_text()}
        ended |= {"index": (out / "store/train/index.h5").exists(), "shards": soak.number_of_shards(out)}
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
