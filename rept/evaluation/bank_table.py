"""The result of a bank of retrainings: a table in the terminal, and bank.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rept.evaluation.bank import Agreement
from rept.utils.console import console
from rept.utils.json_files import read_json, write_json
from rept.utils.text import visible


def show_agreements(found: Sequence[Agreement], trainings: int) -> None:
    """Prints each method's linear datamodeling score, how far it is behind the best, and the mean of each behaviour."""
    labels = sorted({label for one in found for label in one.labels})
    title = f"Linear datamodeling score ± standard error over {trainings} trainings, and by behaviour"
    table = Table(title=title, title_justify="left")
    table.add_column("experiment", no_wrap=True)
    for column in ("all queries", "behind the best", *map(visible, labels)):
        table.add_column(column, justify="right")
    best = max(found, key=lambda one: one.mean)
    for one in found:
        behind, error = one.behind(best)
        by_label = [f"{one.labels[label]:.3f}" if label in one.labels else "–" for label in labels]
        table.add_row(
            Text(visible(one.experiment)), f"{one.mean:.3f} ± {one.error:.3f}", f"{behind:.3f} ± {error:.3f}", *by_label
        )
    console.print()
    console.print(table)


def write_agreements(found: Sequence[Agreement], trainings: int, out: Path) -> None:
    """Adds the scores to bank.json, in place of earlier ones."""
    file = out / "bank.json"
    methods = [asdict(one) | {"error": one.error} for one in found]
    write_json(file, read_json(file) | {"trainings": trainings, "methods": methods})
