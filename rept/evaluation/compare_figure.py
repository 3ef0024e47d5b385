"""comparison.png: how good each method is, how long it takes and its sanity checks (extra ``figures``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rept.evaluation.compare import Outcome
from rept.evaluation.compare_table import best
from rept.evaluation.sanity import Sanity
from rept.report.paper_style import FAINT, INK, POSITIVE, paper_figure
from rept.utils.text import visible

WIDTH = 7.0  # inches: two columns of a paper
MEASURE = "average_precision"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line for each method: average precision over the whole ranking, and seconds on a logarithmic scale.

    With sanity checks, also the rank correlation with the scores of the model with shuffled weights. The best is
    orange. A method that did not run keeps its line, empty.
    """
    names = [visible(outcome.experiment) for outcome in outcomes]
    tops = best(outcomes).get(MEASURE, [])
    colours = [POSITIVE if outcome.experiment in tops else FAINT for outcome in outcomes]
    with paper_figure(WIDTH, 0.6 + 0.22 * len(names), path) as figure:
        checked = [one.sanity.randomised for one in outcomes] if any(one.sanity != Sanity() for one in outcomes) else []
        quality, cost, *more = figure.subplots(1, 3 if checked else 2, sharey=True)
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
            cost.xaxis.set_major_formatter("{x:g}")  # plain text: formulas are not parsed in these figures
            seconds = [seconds for _, seconds in ran]
            few = max(seconds) < 10 * min(seconds)  # there may be no major tick among them
            cost.xaxis.set_minor_formatter("{x:g}" if few else "")
        cost.set(xlabel="seconds, extraction and ranking")
        for axes in more:
            shown = [(name, value) for name, value in zip(names, checked, strict=True) if value is not None]
            axes.plot([value for _, value in shown], [name for name, _ in shown], "o", color=INK, markersize=4)
            axes.set(xlabel="correlation with shuffled weights", xlim=(-0.3, 1.1))
        quality.invert_yaxis()
