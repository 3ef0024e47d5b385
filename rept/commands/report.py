"""python -m rept report: the report page of a run again, and its figures for papers."""

from __future__ import annotations

import os
from pathlib import Path

from rept.errors import UsageError

CONFIG = None
USAGE = """
python -m rept report RUN [--figures] [out=DIR|FILE.html]

Writes RUN/report.html from the run folder alone; neither model nor data are needed.
With --figures also writes the page's plots and a strip of shaded tokens into RUN/figures, as PNG and SVG
(extra `figures`: pip install matplotlib).
With out=DIR the page and figures/ are written to DIR, with out=FILE.html to that file and beside it; the run may then
be read-only.
"""


def run(arguments: list[str]) -> None:
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    runs = [argument for argument in arguments if argument != "--figures" and not argument.startswith("out=")]
    if len(runs) != 1 or runs[0].startswith("-") or len(outs) > 1 or "" in outs:
        raise UsageError(f"Expected one run folder and perhaps --figures and out=, but got {arguments}; see --help.")

    from rept.report.page import write_report
    from rept.results.trace import Trace
    from rept.utils.console import say

    trace = Trace(runs[0])
    if not outs and not os.access(trace.folder.path, os.W_OK):
        raise UsageError(f"{trace.folder.path} cannot be written: name a folder or a file .html for the page by out=.")
    page = _page(Path(outs[0]).expanduser(), trace.folder.report.name) if outs else trace.folder.report
    say(f"Wrote {write_report(trace, page)}.")
    if "--figures" in arguments:
        from rept.report.figures import write_figures

        for path in write_figures(trace, page.parent / trace.folder.figures.name):
            say(f"Wrote {path}.")


def _page(out: Path, name: str) -> Path:
    """The file of the page that ``out`` asks for; its folder is made."""
    page = out if out.suffix == ".html" else out / name
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {page.parent} cannot be written ({error.strerror}); name another by out=."
        ) from None
    return page
