"""The tables of a suite, methods by cases: in the terminal, as suite.md and as suite.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rept.evaluation.case_figures import CaseFigures, Interval, by_behaviour, mean_of_cases
from rept.evaluation.suite import Suite
from rept.utils.console import say, show_table
from rept.utils.files import publish
from rept.utils.json_files import write_json
from rept.utils.text import format_count

_METHODS_ABREAST = 4  # in a terminal of 120 columns
_MEAN = "mean of the cases"


def show_suite(cases: Mapping[str, CaseFigures], suite: Suite) -> None:
    """Prints the average precision of each method in each case, with its interval; a star marks the best.

    A second table has the differences to the first experiment, query by query.
    """
    over = f"mean and 95 % interval over queries and {format_count(len(suite.seeds), 'seed')}"
    first, every = suite.experiments[0], _methods(cases, suite)
    for title, methods, reference in (
        (f"Average precision, {over} (* best)", every, None),
        (f"Average precision minus that of {first} for the same query, {over}", every[1:], first),
    ):
        rows = _rows(cases, methods, reference)
        for start in range(0, len(methods), _METHODS_ABREAST):
            end = start + _METHODS_ABREAST
            here = [[*row[:2], *row[2 + start : 2 + end]] for row in rows]
            show_table(title, ["case", "shown", *methods[start:end]], here, no_wrap=1, padding=(0, 0, 0, 1))
    say("shown: held-out prompts whose answer shows the behaviour; only these are queries. –: no culprit, or not run.")
    say("by behaviour: rows are ranked once for all queries of a behaviour; each of them counts with that ranking.")


def write_suite(cases: Mapping[str, CaseFigures], suite: Suite, out: Path) -> None:
    """Writes suite.json and suite.md."""
    first, methods = suite.experiments[0], _methods(cases, suite)
    measured: dict[str, str | None] = {"average_precision": None, "difference": first}
    record = {
        "experiments": suite.experiments,
        "seeds": suite.seeds,
        "reference": first,
        "cases": {
            name: {"asked": case.asked, "shown": case.shown}
            | {key: {method: case.interval(method, to) for method in methods} for key, to in measured.items()}
            for name, case in cases.items()
        },
        "mean_of_cases": {
            key: {method: mean_of_cases(cases.values(), method, to) for method in methods}
            for key, to in measured.items()
        },
    }
    write_json(out / "suite.json", record)
    parts = []
    for title, columns, reference in (("", methods, None), (f"Minus `{first}`, query by query:", methods[1:], first)):
        head = ["case", "shown", *(f"`{method}`" for method in columns)]
        lines = [
            f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *_rows(cases, columns, reference))
        ]
        parts.append((f"{title}\n\n" if title else "") + "".join(lines))
    publish(out / "suite.md", "\n".join(parts).encode())


def _methods(cases: Mapping[str, CaseFigures], suite: Suite) -> list[str]:
    """The experiments, and those that ranked by behaviour too."""
    together = [by_behaviour(name) for name in suite.experiments]
    return [*suite.experiments, *(name for name in together if any(name in case.found for case in cases.values()))]


def _rows(cases: Mapping[str, CaseFigures], methods: Sequence[str], reference: str | None) -> list[list[str]]:
    """A line for each case and for their mean: its name, how often it showed, and a cell for each method."""
    found = {
        (name, f"{case.shown}/{case.asked}"): [case.interval(method, reference) for method in methods]
        for name, case in cases.items()
    }
    found[_MEAN, ""] = [mean_of_cases(cases.values(), method, reference) for method in methods]
    rows = []
    for head, intervals in found.items():
        best = max((one[0] for one in intervals if one), default=None) if reference is None else None
        rows.append([*head, *(_cell(one, best, signed=reference is not None) for one in intervals)])
    return rows


def _cell(found: Interval | None, best: float | None, signed: bool) -> str:
    if found is None:
        return "–"
    form = "+.2f" if signed else ".2f"
    return f"{'*' if found[0] == best else ''}{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"
