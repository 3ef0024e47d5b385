"""comparison.png: how good each method is and how long it takes (extra ``figures``)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rept.errors import UsageError
from rept.evaluation.compare import Outcome
from rept.evaluation.compare_table import best
from rept.report.figures import FAINT, INK, POSITIVE, STYLE
from rept.utils.text import visible

WIDTH = 7.0  # inches: two columns of a paper
MEASURE = "average_precision"


def check_drawable() -> None:
    """Raises UsageError where matplotlib is not installed: told before anything long has run."""
    if find_spec("matplotlib") is None:
        raise UsageError("comparison.png needs matplotlib: pip install -e '.[figures]'.")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line for each method: average precision over the whole ranking, and seconds on a logarithmic scale.

    The best is orange. A method that did not run keeps its line, empty.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [visible(outcome.experiment) for outcome in outcomes]
    tops = best(outcomes).get(MEASURE, [])
    colours = [POSITIVE if outcome.experiment in tops else FAINT for outcome in outcomes]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 0.22 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        quality, cost = figure.subplots(1, 2, sharey=True)
        values = [outcome.measures.get(MEASURE, 0.0) for outcome in outcomes]
        quality.barh(names, values, color=colours)
        quality.set(xlabel="average precision, whole ranking", xlim=(0, 1.12))
        for i, outcome in enumerate(outcomes):
            told = f"{values[i]:.3f}" if outcome.measures else "did not run" if outcome.reason else ""
            quality.annotate(told, (values[i], i), (3, 0), textcoords="offset points", va="center", fontsize=7)
        ran = [(name, outcome.seconds) for name, outcome in zip(names, outcomes, strict=True) if outcome.seconds]
        if ran:
            cost.plot([seconds for _, seconds in ran], [name for name, _ in ran], "o", color=INK, markersize=4)
            cost.set_xscale("log")
        cost.set(xlabel="seconds, extraction and ranking")
        quality.invert_yaxis()
        figure.savefig(path)
