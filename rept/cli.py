"""What all command lines share: --help, one sentence for a user's mistake, and the exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence

from rept.config.help import describe
from rept.errors import Ended, UsageError
from rept.utils.text import visible


def main(
    name: str | None,
    usage: str,
    run: Callable[[list[str]], None],
    argv: Sequence[str] | None = None,
    keys: Collection[str] | None = None,
) -> int:
    """Runs a command. Exit codes: 0 done, 2 a user's mistake (one sentence on stderr), 130 Ctrl-C, 143 SIGTERM.

    ``--help`` is answered from the YAML files before anything heavy is imported.

    Args:
        name: of the YAML file with the command's keys; None: it has none.
        argv: the command line; None: that of the process.
        keys: the top-level keys of the YAML file that the command takes; None: all.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        _print_help(describe(name, usage, keys) if name else usage.strip())
        return 0
    # Set before tokenizers are imported, which would otherwise print advice in between.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        run(arguments)
    except KeyboardInterrupt:
        print("Stopped; run the same command again to resume, or to start over.", file=sys.stderr)
        return 130
    except (UsageError, Ended) as ended:
        print(visible(str(ended)), file=sys.stderr)
        return ended.exit_code
    return 0


def split_options(
    arguments: Sequence[str], words: int, options: Collection[str], expected: str
) -> tuple[list[str], dict[str, str]]:
    """Returns so many words of a command line, and its options by name: ``--flag``, or ``key=`` for key=value.

    Raises:
        UsageError: the words are too many or too few, or an option is unknown, repeated or empty.
    """
    found: list[str] = []
    settings: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key + equals in options and key not in settings and bool(value) == bool(equals):
            settings[key] = value
        else:
            found.append(argument)
    if len(found) != words or any(word.startswith("-") for word in found):
        raise UsageError(f"Expected {expected}, but got {' '.join(arguments) or 'nothing'}; see --help.")
    return found, settings


def _print_help(text: str) -> None:
    """Prints to a reader that may stop reading early, as ``head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
