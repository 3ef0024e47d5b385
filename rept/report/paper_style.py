"""The style of figures for papers, drawn with matplotlib (extra ``figures``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rept.errors import UsageError
from rept.utils.console import say
from rept.utils.text import format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE, INK, FAINT = "#ec7014", "#3f86d2", "#1d1c1a", "#8a857a"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "figure.dpi": 300,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rept",  # the same run gives the same file
    "text.parse_math": False,  # a dollar sign in a text is a dollar sign
}


def require_matplotlib(what: str) -> None:
    """Raises UsageError if matplotlib is not installed, which ``what`` needs."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"{what} needs matplotlib: pip install matplotlib (extra `figures`).")


@contextmanager
def paper_figure(width: float, height: float, *paths: Path) -> Iterator[Figure]:
    """A figure of a size in inches, saved to all paths at the end."""
    import matplotlib  # optional and heavy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        with warnings.catch_warnings(record=True) as caught:
            yield figure
            for path in paths:
                figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
    missing = {str(one.message) for one in caught if "missing from font" in str(one.message)}
    for one in caught:
        if str(one.message) not in missing:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing:
        count = format_count(len(missing), "character")
        say(f"{paths[0].name} has boxes in place of {count} that its font lacks; the report page shows them.")
