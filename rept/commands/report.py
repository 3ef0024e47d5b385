"""python -m rept report: the report page of a run again, and its figures for papers."""

from __future__ import annotations

import os
from pathlib import Path

from rept.cli import split_options
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
    takes = "one run folder and perhaps --figures and out="
    (run_folder,), options = split_options(arguments, 1, ("--figures", "out="), takes)

    from rept.report.page import write_report
    from rept.results.trace import Trace
    from rept.utils.console import say
    from rept.utils.files import make_folder

    trace = Trace(run_folder)
    if "out" not in options and not os.access(trace.folder.path, os.W_OK):
        raise UsageError(f"{trace.folder.path} cannot be written: name a folder or a file .html for the page by out=.")
    page = trace.folder.report
    if "out" in options:
        out = Path(options["out"]).expanduser()
        page = out if out.suffix == ".html" else out / page.name
        make_folder(page.parent)
    say(f"Wrote {write_report(trace, page)}.")
    if "--figures" in options:
        from rept.report.figures import write_figures

        for path in write_figures(trace, page.parent / trace.folder.figures.name):
            say(f"Wrote {path}.")
