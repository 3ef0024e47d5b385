"""The command `rept train`, from a clone: see `python train.py --help` and rept/commands/train.py."""

from __future__ import annotations

import sys

from rept.__main__ import console

if __name__ == "__main__":
    sys.exit(console("train"))
