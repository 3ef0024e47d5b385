"""attribute.py with a pause before each training batch, so that a test can stop it; KILL_RANK=n kills that rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rept.cli import main
from rept.commands import attribute
from rept.signatures.module import AttributionModule

extract = AttributionModule.predict_step


def predict_step(self, batch, *rest):
    if batch.side == "train":
        time.sleep(0.25)
        if os.environ.get("KILL_RANK") == str(self.trainer.global_rank):
            os.kill(os.getpid(), signal.SIGKILL)
    return extract(self, batch, *rest)


if __name__ == "__main__":
    AttributionModule.predict_step = predict_step
    sys.exit(main("attribute", attribute.USAGE, attribute.run))
