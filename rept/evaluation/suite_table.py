"""The table of a suite, methods by cases: in the terminal, as suite.md and as suite.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from rept.evaluation.suite import CaseFigures, Suite
from rept.utils.console import console, say
from rept.utils.files import publish
from rept.utils.json_files import write_json

_METHODS_ABREAST = 4  # in a terminal of 120 columns


def show_suite(cases: Mapping[str, CaseFigures], suite: Suite) -> None:
    """Prints the average precision of each method in each case, with its interval; a star marks the best."""
    for start in range(0, len(suite.experiments), _METHODS_ABREAST):
        methods = suite.experiments[start : start + _METHODS_ABREAST]
        title = f"Average precision, mean and 95 % interval over queries and {len(suite.seeds)} seeds (* best)"
        table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1))
        table.add_column("case", no_wrap=True)
        table.add_column("shown", justify="right")
        for method in methods:
            table.add_column(method, justify="right")
        for name, case in cases.items():
            table.add_row(name, f"{case.shown}/{case.asked}", *(_cell(case, method) for method in methods))
        console.print(table)
    say("shown: held-out prompts whose answer shows the behaviour; only these are queries. –: no culprit, or not run.")


def write_suite(cases: Mapping[str, CaseFigures], suite: Suite, out: Path) -> None:
    """Writes suite.json and suite.md."""
    record = {
        "experiments": suite.experiments,
        "seeds": suite.seeds,
        "cases": {
            name: {
                "asked": case.asked,
                "shown": case.shown,
                "average_precision": {method: case.interval(method) for method in suite.experiments},
            }
            for name, case in cases.items()
        },
    }
    write_json(out / "suite.json", record)
    lines = [_line(["case", "shown", *(f"`{method}`" for method in suite.experiments)])]
    lines.append(_line(["---"] * (2 + len(suite.experiments))))
    for name, case in cases.items():
        cells = (_cell(case, method) for method in suite.experiments)
        lines.append(_line([name, f"{case.shown}/{case.asked}", *cells]))
    publish(out / "suite.md", ("\n".join(lines) + "\n").encode())


def _cell(case: CaseFigures, method: str) -> str:
    found = case.interval(method)
    if found is None:
        return "–"
    best = max(mean for other in case.found if (mean := case.mean(other)) is not None)
    star = "*" if case.mean(method) == best else ""
    return f"{star}{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
