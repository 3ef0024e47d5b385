"""The page's plots, and a strip of shaded tokens, as PNG and SVG for papers (extra ``figures``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rept.report.findings import BehaviourFindings, Findings
from rept.report.paper_style import FAINT, INK, NEGATIVE, POSITIVE, paper_figure, require_matplotlib
from rept.report.plot_data import Bars, Plot, plots
from rept.results.shading import LEVELS, Piece
from rept.results.trace import Trace
from rept.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.4  # inches: one column of a paper
LINE_HEIGHT = 0.17  # inches
MOST_IN_LEGEND = 9
DASHES = ("-", "--", ":", "-.")
LINE_STYLES: dict[str, dict[str, Any]] = {
    "main": {"color": INK},
    "secondary": {"color": FAINT, "linewidth": 0.9},
    "probe": {"color": FAINT, "linewidth": 0.5, "alpha": 0.18},
}
Placed = tuple[float, float, str | Piece]  # inches from the left and from the top, and what is there


def write_figures(trace: Trace, folder: Path) -> list[Path]:
    """Writes each figure that the run has data for into a folder; returns the paths.

    Raises UsageError if matplotlib is not installed.
    """
    require_matplotlib("report --figures")
    folder.mkdir(exist_ok=True)
    draws: dict[str, Callable[[Figure], None]] = {plot.name: partial(_draw, plot=plot) for plot in plots(trace)}
    examples = [found for found in Findings(trace).behaviours[:4] if found.pieces]
    if examples:
        draws["token_strip"] = partial(_draw_tokens, examples=examples)
    written = []
    for name, draw in draws.items():
        paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
        with paper_figure(WIDTH, WIDTH * 0.62, *paths) as figure:
            draw(figure)
        written += paths
    return written


def _draw(figure: Figure, plot: Plot) -> None:
    from matplotlib.ticker import MaxNLocator  # optional and heavy

    axes = figure.subplots()
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    if plot.bars:
        _draw_bars(axes, plot.bars)
        return
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if plot.y_range:
        axes.set_ylim(plot.y_range[0], 1.03 * plot.y_range[1])
    for i, line in enumerate(plot.lines):
        dashes = DASHES[i % len(DASHES)] if line.role == "secondary" else "-"
        axes.plot(*zip(*line.points, strict=True), dashes, label=visible(line.label), **LINE_STYLES[line.role])
    for x, y, _ in plot.marks:
        axes.plot(x, y, "o", color=POSITIVE, markersize=5)
    if 1 < sum(bool(line.label) for line in plot.lines) <= MOST_IN_LEGEND:
        axes.legend(frameon=False, fontsize=7)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    left = [bars.low + i * bars.width for i in range(len(bars.counts))]
    axes.bar(left, bars.counts, bars.width, align="edge", color="#cfc9bb", label="training rows")
    axes.bar(left, bars.tail, bars.width, align="edge", color=POSITIVE, label=bars.tail_label)
    axes.set(yscale="log", ylim=(0.7, None))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _draw_tokens(figure: Figure, examples: Sequence[BehaviourFindings]) -> None:
    """The clearest example of each behaviour, its text shaded token by token."""
    figure.set_layout_engine("none")
    placed: list[Placed] = []
    down = 0.0
    for found in examples:
        name = f"{visible(found.label)}, " if found.label else ""
        placed.append((0.0, down, f"{name}query {found.hit.query}, row {found.hit.row}"))
        down += LINE_HEIGHT
        across = 0.0
        for piece in found.pieces:
            width = _width(figure, _flat(piece.text))
            if across and across + width > WIDTH - 0.1:
                across, down = 0.0, down + LINE_HEIGHT
            if not across:
                piece = replace(piece, text=piece.text.lstrip())
                width = _width(figure, _flat(piece.text))
            placed.append((across, down, piece))
            across += width
        down += 2 * LINE_HEIGHT
    figure.set_size_inches(WIDTH, down)
    for across, top, shown in placed:
        x, y = (across + 0.05) / WIDTH, 1 - (top + 0.12) / down
        if isinstance(shown, str):
            figure.text(x, y, shown, color=FAINT, fontsize=6.5, va="baseline", parse_math=False)
            continue
        alpha = 0.75 * abs(shown.level) / LEVELS
        box = {"facecolor": POSITIVE if shown.level > 0 else NEGATIVE, "alpha": alpha, "edgecolor": "none", "pad": 0.8}
        text = _flat(shown.text)
        figure.text(x, y, text, color=INK, bbox=box if shown.level else None, va="baseline", parse_math=False)


def _flat(text: str) -> str:
    return visible(text).replace("\n", " ")


def _width(figure: Figure, text: str) -> float:
    """The width of a text in inches, including spaces at its ends."""
    widths = []
    for shown in (f"|{text}|", "||"):
        drawn = figure.text(0, 0, shown, parse_math=False)
        widths.append(drawn.get_window_extent().width)
        drawn.remove()
    return float(widths[0] - widths[1]) / figure.dpi
