"""python -m rept report: the report page of a run again, and its figures for papers."""

from __future__ import annotations

from rept.errors import UsageError

CONFIG = None
USAGE = """
python -m rept report RUN [--figures]

Writes RUN/report.html from the run folder alone; neither model nor data are needed.
With --figures also writes the page's plots and a strip of shaded tokens into RUN/figures, as PNG and SVG
(extra `figures`: pip install -e '.[figures]').
"""


def run(arguments: list[str]) -> None:
    runs = [argument for argument in arguments if argument != "--figures"]
    if len(runs) != 1 or runs[0].startswith("-"):
        raise UsageError(f"Expected one run folder and perhaps --figures, but got {arguments}; see --help.")

    from rept.report.page import write_report
    from rept.results.trace import Trace
    from rept.utils.console import say

    trace = Trace(runs[0])
    say(f"Wrote {write_report(trace)}.")
    if "--figures" in arguments:
        from rept.report.figures import write_figures

        for path in write_figures(trace):
            say(f"Wrote {path}.")
