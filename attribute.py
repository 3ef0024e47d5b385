"""The command `rept attribute`, from a clone: see `python attribute.py --help` and rept/commands/attribute.py."""

from __future__ import annotations

import sys

from rept.__main__ import console

if __name__ == "__main__":
    sys.exit(console("attribute"))
