"""The result of a bank of retrainings: a table in the terminal, and bank.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rept.evaluation.bank import Agreement
from rept.utils.console import console, show_table
from rept.utils.json_files import read_json, write_json


def show_agreements(found: Sequence[Agreement], trainings: int) -> None:
    """Prints each method's linear datamodeling score, how far it is behind the best, and the mean of each behaviour."""
    labels = sorted({label for one in found for label in one.labels})
    title = f"Linear datamodeling score ± standard error over {trainings} trainings, and by behaviour"
    best = max(found, key=lambda one: one.mean)
    rows = []
    for one in found:
        behind, error = one.behind(best)
        by_label = [f"{one.labels[label]:.3f}" if label in one.labels else "–" for label in labels]
        rows.append((one.experiment, f"{one.mean:.3f} ± {one.error:.3f}", f"{behind:.3f} ± {error:.3f}", *by_label))
    console.print()
    show_table(title, ("experiment", "all queries", "behind the best", *labels), rows, no_wrap=1)


def write_agreements(found: Sequence[Agreement], trainings: int, out: Path) -> None:
    """Adds the scores to bank.json, in place of earlier ones."""
    file = out / "bank.json"
    methods = [asdict(one) | {"error": one.error} for one in found]
    write_json(file, read_json(file) | {"trainings": trainings, "methods": methods})
