"""python -m rept rows: what became of the training rows of a run."""

from __future__ import annotations

from rept.cli import split_options
from rept.errors import UsageError

CONFIG = None
USAGE = """
python -m rept rows RUN [--set-aside]

Prints how many training rows were attributed and how many were set aside, by reason. With --set-aside prints one line
for each row that was set aside instead: its number (from 0), a tab and the reason. The model and the data are not
needed.

  python -m rept rows runs/demo --set-aside > set-aside.tsv
"""
FLAG = "--set-aside"


def run(arguments: list[str]) -> None:
    (path,), options = split_options(arguments, 1, (FLAG,), f"one run folder and perhaps {FLAG}")

    from rept.report.overview import row_counts
    from rept.results.run_folder import RunFolder
    from rept.results.trace import Trace
    from rept.store.manifest import stored_status
    from rept.types import Status
    from rept.utils.console import say

    if FLAG not in options:
        say("; ".join(row_counts(Trace(path))) + ".")
        return
    folder = RunFolder(path)
    folder.open_existing()
    if ranked_from := folder.read_provenance().get("ranked_from"):
        raise UsageError(f"{path} has no signatures of its own: name the run whose signatures it ranks, {ranked_from}.")
    for row, code in enumerate(stored_status(folder.store, "train").tolist()):
        if not Status(code).attributed:
            print(f"{row}\t{Status(code).reason}")  # not by the console, which expands tabs
