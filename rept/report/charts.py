"""Plots as inline SVG for the page, whose style sheet gives the colours.

All share one frame of 360 x 200 units, so that their letters have one size wherever they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from markupsafe import Markup

from rept.report.plot_data import Bars, Plot
from rept.utils.text import visible

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 34  # margins for the axes' numbers


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Maps values onto a stretch of the drawing."""
    unit = (end - start) / (high - low) if high > low else 0.0
    return lambda value: round(start + (value - low) * unit if unit else (start + end) / 2, 1)


def svg(plot: Plot) -> Markup:
    """A plot as an SVG element."""
    drawn = _bars(plot.bars) if plot.bars else _lines(plot)
    label = _text((LEFT + WIDTH) / 2, HEIGHT - 3, plot.x_label)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, plot.summary, Markup("").join([*drawn, label])
    )


def _lines(plot: Plot) -> list[Markup]:
    xs, ys = zip(*(point for line in plot.lines for point in line.points), strict=True)
    x = _axis(min(xs), max(min(xs) + 1, *xs), LEFT + 14, WIDTH - RIGHT - 14)
    margin = 0.06 * (max(ys) - min(ys)) or 0.01
    low, high = plot.y_range or (min(ys) - margin, max(ys) + margin)
    y = _axis(low, high, HEIGHT - BOTTOM, TOP)
    parts = _y_axis(y, [(tick, f"{tick:g}") for tick in _round_values(low, high, 4)])
    parts += [_text(x(value), HEIGHT - 16, str(value)) for value in _whole_values(min(xs), max(xs))]
    for line in plot.lines:
        title = Markup("<title>{}</title>").format(visible(line.label)) if line.label else ""
        path = "M" + "L".join(f"{x(a)} {y(b)}" for a, b in line.points)
        parts.append(Markup('<path class="{}" d="{}">{}</path>').format(line.role, path, title))
    for a, b, name in plot.marks:
        parts.append(Markup('<circle class="chosen" cx="{}" cy="{}" r="4.5"/>').format(x(a), y(b)))
        above = y(b) > HEIGHT / 2
        parts.append(_text(x(a), y(b) + (-10 if above else 18), name, css="mark"))
    return parts


def _bars(bars: Bars) -> list[Markup]:
    """Heights are ``log10(1 + count)``; of each bin, the tail is in front."""
    high = bars.low + bars.width * len(bars.counts)
    x = _axis(bars.low, high, LEFT, WIDTH - RIGHT)
    top = max(1.0, math.log10(1 + max(bars.counts)))
    y = _axis(0, top, HEIGHT - BOTTOM, TOP)
    powers = [10**p for p in range(0, math.floor(top) + 1, 1 + math.floor(top / 5))]
    parts = _y_axis(y, [(math.log10(1 + power), _short(power)) for power in powers])
    edges = [x(bars.low + i * bars.width) for i in range(len(bars.counts) + 1)]
    for name, counts in (("all", bars.counts), ("tail", bars.tail)):
        path = "".join(
            f"M{left} {y(0)}V{y(math.log10(1 + count))}H{right}V{y(0)}Z"
            for (left, right), count in zip(pairwise(edges), counts, strict=True)
            if count
        )
        parts.append(Markup('<path class="bar {}" d="{}"/>').format(name, path))
    return parts + [_text(x(value), HEIGHT - 16, f"{value:g}") for value in _round_values(bars.low, high, 5)]


def _y_axis(y: Callable[[float], float], ticks: Iterable[tuple[float, str]]) -> list[Markup]:
    parts = []
    for tick, name in ticks:
        line = Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y(tick), WIDTH - RIGHT)
        parts += [line, _text(LEFT - 6, y(tick) + 4, name, "end")]
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(css, x, y, anchor, text)


def _round_values(low: float, high: float, about: int) -> list[float]:
    """About so many round numbers from low to high."""
    raw = (high - low) / about or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _whole_values(low: float, high: float) -> Sequence[int]:
    """All whole numbers from low to high, or these two and some round ones between them."""
    if high - low < 10:
        return range(int(low), int(high) + 1)
    margin = 0.07 * (high - low)
    inner = [int(v) for v in _round_values(low, high, 4) if v == int(v) and low + margin < v < high - margin]
    return [int(low), *inner, int(high)]


def _short(number: int) -> str:
    return f"{number // 1_000_000}M" if number >= 1_000_000 else f"{number // 1000}k" if number >= 1000 else str(number)
