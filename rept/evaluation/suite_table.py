"""The table of a suite, methods by cases: in the terminal, as suite.md and as suite.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rept.evaluation.suite import CaseFigures, Suite
from rept.utils.console import say, show_table
from rept.utils.files import publish
from rept.utils.json_files import write_json

_METHODS_ABREAST = 4  # in a terminal of 120 columns


def show_suite(cases: Mapping[str, CaseFigures], suite: Suite) -> None:
    """Prints the average precision of each method in each case, with its interval; a star marks the best."""
    for start in range(0, len(suite.experiments), _METHODS_ABREAST):
        methods = suite.experiments[start : start + _METHODS_ABREAST]
        title = f"Average precision, mean and 95 % interval over queries and {len(suite.seeds)} seeds (* best)"
        columns, rows = _cells(cases, methods)
        show_table(title, columns, rows, no_wrap=1, padding=(0, 0, 0, 1))
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
    columns, rows = _cells(cases, suite.experiments)
    head = [*columns[:2], *(f"`{method}`" for method in suite.experiments)]
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows)]
    publish(out / "suite.md", "".join(lines).encode())


def _cells(cases: Mapping[str, CaseFigures], methods: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The head of the table, and a line for each case."""
    rows = []
    for name, case in cases.items():
        found = {method: case.interval(method) for method in case.found}
        best = max((one[0] for one in found.values() if one), default=0.0)
        rows.append([name, f"{case.shown}/{case.asked}", *(_cell(found.get(method), best) for method in methods)])
    return ["case", "shown", *methods], rows


def _cell(found: tuple[float, float, float] | None, best: float) -> str:
    return f"{'*' if found[0] == best else ''}{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]" if found else "–"
