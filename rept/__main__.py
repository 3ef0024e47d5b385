"""rept COMMAND, or python -m rept COMMAND: the subcommands in rept/commands."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from rept.cli import main

COMMANDS = sorted(path.stem for path in (Path(__file__).parent / "commands").glob("[a-z]*.py"))


def dispatch(argv: list[str]) -> int:
    """Runs ``rept.commands.NAME``.

    It has USAGE, CONFIG (the YAML of its keys, or None) and run(), and KEYS if it takes only some keys of that YAML.
    """
    if argv and argv[0] in COMMANDS:
        command = import_module(f"rept.commands.{argv[0]}")
        return main(command.CONFIG, command.USAGE, command.run, argv[1:], vars(command).get("KEYS"))
    usage = f"rept {{{','.join(COMMANDS)}}} ...   (each with --help)"
    asked = not argv or argv[0] in ("--help", "-h")
    print(usage if asked else f"There is no command {argv[0]!r}: {usage}", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def console(*command: str) -> int:
    """Runs the command line of this process: `rept` and `python -m rept`; attribute.py and train.py give their name."""
    if not sys.flags.safe_path:  # a user's own classes are found in the working directory, as by python -m
        sys.path.append(os.getcwd())
    return dispatch([*command, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(console())
