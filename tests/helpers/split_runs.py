"""Runs of attribute.py, each a fork of this process, so that torch is imported once; prints how each ended, as JSON.

python tests/helpers/split_runs.py LOG RUN ...    each RUN: a JSON list of the fault (`faults.plant`) and arguments
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import forking  # isort: skip  before anything computes

from extractors.gradients import parameter_gradient
from scorers import inner_product
from tests.helpers import faults, fsdp_on_cpu

NEEDED = (parameter_gradient, inner_product, fsdp_on_cpu)  # what a run would import by name


def main(log: Path, *runs: str) -> None:
    faults.plant()
    for fault, arguments in map(json.loads, runs):
        log.unlink(missing_ok=True)
        run = forking.start(arguments, log, **fault)
        code = run.wait()
        forking.wait_until_gone(run.pid)
        print(json.dumps([code, log.read_text()]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
