"""What every command line shares: --help, one sentence for a user's mistake, and the exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from rept.config.help import describe
from rept.errors import UsageError
from rept.utils.text import visible


def main(name: str | None, usage: str, run: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done, 2 a user's mistake (one sentence on stderr), 130 Ctrl-C, 143 SIGTERM.

    ``--help`` is answered from the YAML files before anything heavy is imported.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(describe(name, usage) if name else usage.strip())
        return 0
    # Set before torch or transformers are imported: their progress bars and advice would stand between ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        run(arguments)
    except UsageError as mistake:
        print(visible(str(mistake)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; give the same command again to go on, or to begin anew.", file=sys.stderr)
        return 130
    except BaseException as stopped:  # rept.distributed.signals.Stopped, too heavy to import for --help, or CheckFailed
        if not hasattr(stopped, "exit_code"):
            raise
        print(visible(str(stopped)), file=sys.stderr)
        return stopped.exit_code
    return 0
