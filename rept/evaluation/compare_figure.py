"""comparison.png: how good each method is and how long it takes (extra ``figures``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rept.evaluation.compare import Outcome
from rept.evaluation.compare_table import best
from rept.report.paper_style import FAINT, INK, POSITIVE, paper_figure
from rept.utils.text import visible

WIDTH = 7.0  # inches: two columns of a paper
MEASURE = "average_precision"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line for each method: average precision over the whole ranking, and seconds on a logarithmic scale.

    The best is orange. A method that did not run keeps its line, empty.
    """
    names = [visible(outcome.experiment) for outcome in outcomes]
    tops = best(outcomes).get(MEASURE, [])
    colours = [POSITIVE if outcome.experiment in tops else FAINT for outcome in outcomes]
    with paper_figure(WIDTH, 0.6 + 0.22 * len(names), path) as figure:
        quality, cost = figure.subplots(1, 2, sharey=True)
        values = [outcome.measures.get(MEASURE, 0.0) for outcome in outcomes]
        quality.barh(names, values, color=colours)
        quality.set(xlabel="average precision, whole ranking", xlim=(0, 1.12))
        for i, outcome in enumerate(outcomes):
            note = f"{values[i]:.3f}" if outcome.measures else "did not run" if outcome.reason else ""
            quality.annotate(note, (values[i], i), (3, 0), textcoords="offset points", va="center", fontsize=7)
        ran = [(name, outcome.seconds) for name, outcome in zip(names, outcomes, strict=True) if outcome.seconds]
        if ran:
            cost.plot([seconds for _, seconds in ran], [name for name, _ in ran], "o", color=INK, markersize=4)
            cost.set_xscale("log")
        cost.set(xlabel="seconds, extraction and ranking")
        quality.invert_yaxis()
