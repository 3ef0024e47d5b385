"""The result of a comparison: tables in the terminal, comparison.json and comparison.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rept.evaluation.compare import Outcome
from rept.evaluation.sanity import SHARED, Sanity
from rept.utils.console import console, say
from rept.utils.files import publish
from rept.utils.json_files import write_json
from rept.utils.text import visible

_COUNTS = ("queries", "without_relevant")  # counts, which are not measures
COSTS = ("extraction_seconds", "ranking_seconds", "seconds", "peak_memory_bytes", "bytes_per_sample")


def best(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Returns the experiments with the highest value of each measure; several if they are equal."""
    measures = list(dict.fromkeys(name for o in outcomes for name in o.measures if name not in _COUNTS))
    top = {name: max(o.measures[name] for o in outcomes if name in o.measures) for name in measures}
    return {name: [o.experiment for o in outcomes if o.measures.get(name) == top[name]] for name in measures}


def fastest(outcomes: Sequence[Outcome]) -> str | None:
    """Returns the experiment with the fewest seconds of extraction and ranking together."""
    ran = [outcome for outcome in outcomes if outcome.seconds is not None]
    return min(ran, key=lambda outcome: outcome.seconds or 0.0).experiment if ran else None


def write_comparison(outcomes: Sequence[Outcome], arguments: Sequence[str], out: Path) -> None:
    """Writes comparison.json and comparison.csv, their rows in the order of the experiments."""
    record = {
        "arguments": list(arguments),
        "best": best(outcomes),
        "fastest": fastest(outcomes),
        "methods": [_record(outcome) for outcome in outcomes],
    }
    write_json(out / "comparison.json", record)
    publish(out / "comparison.csv", _csv(outcomes).encode("utf-8", "backslashreplace"))


def show_comparison(outcomes: Sequence[Outcome]) -> None:
    """Prints the measures, the costs, and why a method did not run; a star marks the best and the fastest."""
    marks, quickest = best(outcomes), fastest(outcomes)
    console.print()
    if marks:
        table = _table("Measures over all queries (* best)", [_short(name) for name in marks])
        for outcome in outcomes:
            starred = {name: outcome.experiment in tops for name, tops in marks.items()}
            cells = [_cell(outcome.measures.get(name), _share, starred[name]) for name in marks]
            table.add_row(Text(visible(outcome.experiment)), *cells)
        console.print(table)
    else:
        say("No measures: they need labels on queries and training rows.")
    table = _table("Costs (* fastest)", ["extraction, s", "ranking, s", "together, s", "peak MB", "bytes a sample"])
    form: dict[str, Callable[[float], str]] = dict.fromkeys(COSTS[:3], lambda seconds: f"{seconds:.1f}")
    form |= {"peak_memory_bytes": lambda number: f"{number / 1e6:,.0f}", "bytes_per_sample": lambda n: f"{n:,.0f}"}
    for outcome in outcomes:
        name = outcome.experiment
        cells = [_cell(getattr(outcome, cost), form[cost], cost == "seconds" and name == quickest) for cost in COSTS]
        table.add_row(Text(visible(name)), *cells)
    console.print(table)
    _show_sanity(outcomes)
    for outcome in outcomes:
        if outcome.reason is not None:
            say(f"{outcome.experiment} did not run: {outcome.reason}")


def _show_sanity(outcomes: Sequence[Outcome]) -> None:
    """Prints the sanity checks, if there are any."""
    if all(outcome.sanity == Sanity() for outcome in outcomes):
        return
    columns = {
        "randomised": "correlation with scores of shuffled weights",
        "overlap": f"first {SHARED} hits shared by queries of different behaviours",
        "self_retrieval": "training rows that find themselves",
    }
    table = _table("Sanity checks", [*columns.values(), "shuffled weights, s"])
    for outcome in outcomes:
        cells = [_cell(getattr(outcome.sanity, name), _share) for name in columns]
        table.add_row(
            Text(visible(outcome.experiment)), *cells, _cell(outcome.sanity.seconds, lambda seconds: f"{seconds:.1f}")
        )
    console.print(table)
    for outcome in outcomes:
        if outcome.sanity.reason is not None:
            say(f"{outcome.experiment} with shuffled weights did not run: {outcome.sanity.reason}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1))
    table.add_column("experiment", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cell(value: float | None, form: Callable[[float], str], starred: bool = False) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{'*' if starred else ''}{form(value)}", style="bold" if starred else "")


def _share(value: float) -> str:
    return f"{value:.3f}"


def _short(measure: str) -> str:
    """A measure's name as narrow as a column."""
    words = {"precision": "P", "recall": "R", "pooled_average_precision": "pooled AP", "average_precision": "AP"}
    name, at, cutoff = measure.partition("@")
    return f"{words.get(name, name.replace('_', ' '))}{at}{cutoff}"


def _record(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"folder": str(outcome.folder), "seconds": outcome.seconds}


def _csv(outcomes: Sequence[Outcome]) -> str:
    """One line for each experiment over all its queries (``label`` empty), then one for each label."""
    measures = list(dict.fromkeys(name for outcome in outcomes for name in outcome.measures))
    stream, checks = io.StringIO(), ("randomised", "overlap", "self_retrieval")
    writer = csv.DictWriter(stream, ["experiment", "label", *measures, *COSTS, *checks, "reason"], lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        costs = {cost: getattr(outcome, cost) for cost in COSTS}
        head = {"experiment": outcome.experiment, "label": "", "reason": outcome.reason}
        writer.writerow(
            head | dict(outcome.measures) | costs | {name: getattr(outcome.sanity, name) for name in checks}
        )
        for label, found in outcome.labels.items():
            writer.writerow({"experiment": outcome.experiment, "label": label} | dict(found))
    return stream.getvalue()
