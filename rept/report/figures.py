"""The figures as PNG and SVG for papers (extra ``figures``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rept.errors import UsageError
from rept.report import charts, plot_data
from rept.report.findings import Findings
from rept.results.shading import LEVELS, Piece
from rept.results.trace import Trace
from rept.utils.text import visible

POSITIVE, NEGATIVE, INK, FAINT = "#ec7014", "#3f86d2", "#1d1c1a", "#8a857a"
WIDTH = 3.4  # inches: one column of a paper
STYLE = {
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


def write_figures(trace: Trace) -> list[Path]:
    """Writes each figure that the run has data for into ``figures/`` and returns the paths.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("The figures need matplotlib: pip install -e '.[figures]'.") from None
    folder = trace.folder.figures
    folder.mkdir(exist_ok=True)
    written = []
    draws: dict[str, Callable[[Any, Trace], bool]] = {
        "layer_curve": _layer_curve,
        "precision_by_k": _precision,
        "score_histogram": _scores,
        "token_strip": _token_strip,
    }
    with matplotlib.rc_context(STYLE):
        for name, draw in draws.items():
            figure = Figure(figsize=(WIDTH, WIDTH * 0.62), layout="constrained")
            FigureCanvasAgg(figure)  # measures text
            if draw(figure, trace):
                for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                    path = folder / f"{name}.{suffix}"
                    figure.savefig(path, metadata=metadata)
                    written.append(path)
    return written


def _layer_curve(figure: Any, trace: Trace) -> bool:
    curve = trace.layers.get("curve")
    if not curve:
        return False
    axes = figure.subplots()
    measure, first = trace.layers["measure"], trace.layers["first"]
    layers = range(first, len(curve) + first)
    for probe in trace.layers.get("probes") or []:
        axes.plot(layers, probe, color=FAINT, alpha=0.18, linewidth=0.5)
    axes.plot(layers, curve, color=INK)
    for layer in trace.layers["layers"]:
        if layer in layers:
            axes.plot(layer, curve[layer - first], "o", color=POSITIVE, markersize=5)
    axes.set(xlabel=charts.layer_axis(measure), ylabel=measure)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return True


def _precision(figure: Any, trace: Trace) -> bool:
    found = plot_data.precision(trace)
    if found is None:
        return False
    axes = figure.subplots()
    for i, (label, values) in enumerate(found.labels if len(found.labels) > 1 else ()):
        dashes = ("-", "--", ":", "-.")[i % 4]
        axes.plot(range(1, len(values) + 1), values, dashes, color=FAINT, linewidth=0.9, label=visible(label))
    axes.plot(range(1, len(found.overall) + 1), found.overall, color=INK, label="overall")
    axes.set(xlabel="k", ylabel="precision at k", ylim=(0, 1.03))
    if 1 < len(found.labels) <= 8:
        axes.legend(frameon=False, fontsize=7)
    return True


def _scores(figure: Any, trace: Trace) -> bool:
    found = plot_data.scores(trace)
    if found is None:
        return False
    axes = figure.subplots()
    left = [found.low + i * found.width for i in range(len(found.counts))]
    tail = "flagged" if found.flagged else "best hit of each query"
    axes.bar(left, found.counts, found.width, align="edge", color="#cfc9bb", label="training rows")
    axes.bar(left, found.tail, found.width, align="edge", color=POSITIVE, label=tail)
    axes.set(xlabel="score", ylabel="pairs", yscale="log", ylim=(0.7, None))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return True


def _token_strip(figure: Any, trace: Trace) -> bool:
    """The clearest example of each behaviour, its text shaded token by token."""
    examples = [(b.label, b.example) for b in Findings(trace).behaviours[:4] if b.example and b.example.pieces]
    if not examples:
        return False
    figure.set_layout_engine("none")
    renderer, down = figure.canvas.get_renderer(), 0.0
    line = 0.17  # inches
    drawn: list[tuple[float, float, Piece | str]] = []
    for label, example in examples:
        name = f"{visible(label)}, " if label else ""
        drawn.append((0.0, down, f"{name}query {example.query}, row {example.hit.row}"))
        down += line
        across = 0.0
        for piece in example.pieces:
            width = _width(figure, renderer, _flat(piece.text))
            if across + width > WIDTH - 0.1 and across:
                across, down = 0.0, down + line
            if not across:
                piece = replace(piece, text=piece.text.lstrip())
                width = _width(figure, renderer, _flat(piece.text))
            drawn.append((across, down, piece))
            across += width
        down += 2 * line
    height = down
    figure.set_size_inches(WIDTH, height)
    for across, top, piece in drawn:
        place = {"x": (across + 0.05) / WIDTH, "y": 1 - (top + 0.12) / height, "va": "baseline", "parse_math": False}
        if isinstance(piece, str):
            figure.text(s=piece, color=FAINT, fontsize=6.5, **place)
            continue
        box = {"facecolor": POSITIVE if piece.level > 0 else NEGATIVE, "alpha": 0.75 * abs(piece.level) / LEVELS}
        box |= {"edgecolor": "none", "pad": 0.8}
        figure.text(s=_flat(piece.text), color=INK, bbox=box if piece.level else None, **place)
    return True


def _flat(text: str) -> str:
    return visible(text).replace("\n", " ")


def _width(figure: Any, renderer: Any, text: str) -> float:
    """Inches that a text takes, its spaces at either end included."""
    measured = figure.text(0, 0, f"|{text}|", parse_math=False)
    ends = figure.text(0, 0, "||", parse_math=False)
    width = measured.get_window_extent(renderer).width - ends.get_window_extent(renderer).width
    measured.remove()
    ends.remove()
    return width / figure.dpi
