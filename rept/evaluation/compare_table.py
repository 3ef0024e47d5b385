"""The result of a comparison: tables in the terminal, comparison.json and comparison.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from rept.evaluation.compare import Outcome
from rept.evaluation.sanity import SHARED, Sanity
from rept.utils.console import console, say, show_table
from rept.utils.files import publish
from rept.utils.json_files import write_json

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
        "methods": [asdict(one) | {"folder": str(one.folder), "seconds": one.seconds} for one in outcomes],
    }
    write_json(out / "comparison.json", record)
    publish(out / "comparison.csv", _csv(outcomes).encode("utf-8", "backslashreplace"))


def show_comparison(outcomes: Sequence[Outcome]) -> None:
    """Prints the measures, the costs, and why a method did not run; a star marks the best and the fastest."""
    marks, quickest = best(outcomes), fastest(outcomes)
    console.print()
    if marks:
        rows = [
            [_cell(outcome.measures.get(name), ".3f", outcome.experiment in tops) for name, tops in marks.items()]
            for outcome in outcomes
        ]
        _show("Measures over all queries (* best)", [_short(name) for name in marks], outcomes, rows)
    else:
        say("No measures: they need labels of behaviours on queries and training rows.")
    rows = []
    for one in outcomes:
        peak = one.peak_memory_bytes and one.peak_memory_bytes / 1e6
        seconds = [_cell(one.extraction_seconds), _cell(one.ranking_seconds)]
        seconds.append(_cell(one.seconds, starred=one.experiment == quickest))
        rows.append([*seconds, _cell(peak, ",.0f"), _cell(one.bytes_per_sample, ",.0f")])
    columns = ["extraction, s", "ranking, s", "together, s", "peak MB", "bytes a sample"]
    _show("Costs (* fastest)", columns, outcomes, rows)
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
    rows = [
        [*(_cell(getattr(one.sanity, name), ".3f") for name in columns), _cell(one.sanity.seconds)] for one in outcomes
    ]
    _show("Sanity checks", [*columns.values(), "shuffled weights, s"], outcomes, rows)
    for outcome in outcomes:
        if outcome.sanity.reason is not None:
            say(f"{outcome.experiment} with shuffled weights did not run: {outcome.sanity.reason}")


def _show(title: str, columns: Sequence[str], outcomes: Sequence[Outcome], cells: Sequence[Sequence[Text]]) -> None:
    rows: list[list[str | Text]] = [[outcome.experiment, *own] for outcome, own in zip(outcomes, cells, strict=True)]
    show_table(title, ("experiment", *columns), rows, no_wrap=1, padding=(0, 0, 0, 1))


def _cell(value: float | None, form: str = ".1f", starred: bool = False) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{'*' if starred else ''}{value:{form}}", style="bold" if starred else "")


def _short(measure: str) -> str:
    """A measure's name as narrow as a column."""
    words = {"precision": "P", "recall": "R", "pooled_average_precision": "pooled AP", "average_precision": "AP"}
    name, at, cutoff = measure.partition("@")
    return f"{words.get(name, name.replace('_', ' '))}{at}{cutoff}"


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
