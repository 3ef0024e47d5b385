"""The page's figures as inline SVG, drawn from plain numbers; colours come from the page's style sheet.

All share one frame of 360 x 200 units, so that their letters have one size wherever they stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from rept.signatures.layer_strategy import ADJACENT_COSINE

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 34  # room for the axes' numbers


@dataclass(frozen=True)
class Axis:
    """Values laid along a stretch of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def layer_curve(
    curve: Sequence[float],
    probes: Sequence[Sequence[float]],
    chosen: Sequence[int],
    measure: str = ADJACENT_COSINE,
    first: int = 2,
) -> Markup:
    """What a layer strategy looked at: the mean, single probes faint behind it, the chosen layers marked.

    Args:
        curve: value i belongs to layer ``first + i``; the cosine of a pair to the later of the two.
    """
    values = [*curve, *(value for probe in probes for value in probe)]
    x = Axis(0, max(1, len(curve) - 1), LEFT + 14, WIDTH - RIGHT - 14)
    y = _vertical(min(values), max(values))
    parts = _y_axis(y)
    step = math.ceil(len(curve) / 10)
    parts += [_text(x(i), HEIGHT - 16, str(first + i), "middle") for i in range(0, len(curve), step)]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, layer_axis(measure), "middle"))
    parts += [_line([(x(i), y(value)) for i, value in enumerate(probe)], "probe") for probe in probes]
    parts.append(_line([(x(i), y(value)) for i, value in enumerate(curve)], "mean"))
    for layer in chosen:
        i = layer - first
        if 0 <= i < len(curve):
            parts.append(Markup('<circle class="chosen" cx="{}" cy="{}" r="4.5"/>').format(x(i), y(curve[i])))
            above = y(curve[i]) > HEIGHT / 2
            parts.append(_text(x(i), y(curve[i]) + (-10 if above else 18), f"layer {layer}", "middle", "mark"))
    return _frame(parts, f"{measure.capitalize()}, {len(probes)} probes; chosen: layer {_listed(chosen)}.")


def layer_axis(measure: str) -> str:
    """What the numbers below a layer curve are."""
    return "later layer of the pair" if measure == ADJACENT_COSINE else "layer"


def measure_by_layer(sites: Mapping[str, Sequence[tuple[int, float]]]) -> Markup:
    """A measure from 0 to 1 at each layer: the first site in front, others faint."""
    layers = sorted({layer for points in sites.values() for layer, _ in points})
    x = Axis(layers[0], max(layers[-1], layers[0] + 1), LEFT + 14, WIDTH - RIGHT - 14)
    y = Axis(0, 1, HEIGHT - BOTTOM, TOP)
    parts = _y_axis(y, (0, 0.25, 0.5, 0.75, 1))
    parts += [_text(x(layer), HEIGHT - 16, str(layer), "middle") for layer in layers[:: math.ceil(len(layers) / 10)]]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, "layer", "middle"))
    for site, points in reversed(sites.items()):
        name = "mean" if site == next(iter(sites)) else "probe wide"
        parts.append(_line([(x(layer), y(value)) for layer, value in points], name, title=site))
    site, points = next(iter(sites.items()))
    return _frame(parts, f"{site}: " + ", ".join(f"{value:.3f} at layer {layer}" for layer, value in points) + ".")


def precision_curve(overall: Sequence[float], labels: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Precision at each k: over all queries, and faint for each label."""
    x, y = Axis(1, max(2, len(overall)), LEFT, WIDTH - RIGHT), Axis(0, 1, HEIGHT - BOTTOM, TOP)
    parts = _y_axis(y, (0, 0.25, 0.5, 0.75, 1))
    parts += [_text(x(k), HEIGHT - 16, str(k), "middle") for k in _steps(len(overall))]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, "k", "middle"))
    for label, values in labels:
        points = [(x(k), y(value)) for k, value in enumerate(values, start=1)]
        parts.append(_line(points, "probe wide", title=label))
    parts.append(_line([(x(k), y(value)) for k, value in enumerate(overall, start=1)], "mean"))
    summary = f"Precision at k from 1 to {len(overall)}: {overall[0]:.3f} at 1, {overall[-1]:.3f} at {len(overall)}."
    return _frame(parts, summary)


def score_histogram(low: float, width: float, counts: Sequence[int], tail: Sequence[int]) -> Markup:
    """Counts of scores on a logarithmic axis; of each bin, the part that belongs to the tail stands in front."""
    x = Axis(low, low + width * len(counts), LEFT, WIDTH - RIGHT)
    top = max(1.0, math.log10(1 + max(counts)))
    y = Axis(0, top, HEIGHT - BOTTOM, TOP)
    powers = range(0, math.floor(top) + 1, 1 + math.floor(top / 5))
    parts = _y_axis(y, [math.log10(1 + 10**p) for p in powers], [_short(10**p) for p in powers])
    edges = [x(low + i * width) for i in range(len(counts) + 1)]
    parts += [_bars(edges, heights, y, name) for name, heights in (("all", counts), ("tail", tail))]
    ticks = _round_values(x.low, x.high, 5)
    parts += [_text(x(value), HEIGHT - 16, f"{value:g}", "middle") for value in ticks]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, "score", "middle"))
    counted = f"{sum(counts):,} scores from {x.low:.3g} to {x.high:.3g}"
    return _frame(parts, f"Histogram of {counted}; {sum(tail):,} of them in the tail.")


def _bars(edges: Sequence[float], heights: Sequence[int], y: Axis, name: str) -> Markup:
    path = "".join(
        f"M{left} {y(0)}V{y(math.log10(1 + count))}H{right}V{y(0)}Z"
        for (left, right), count in zip(pairwise(edges), heights, strict=True)
        if count
    )
    return Markup('<path class="bar {}" d="{}"/>').format(name, path)


def _frame(parts: Sequence[Markup], summary: str) -> Markup:
    inside = Markup("").join(parts)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, summary, inside
    )


def _vertical(low: float, high: float) -> Axis:
    room = 0.06 * (high - low) or 0.01
    return Axis(low - room, high + room, HEIGHT - BOTTOM, TOP)


def _y_axis(y: Axis, ticks: Sequence[float] | None = None, names: Sequence[str] | None = None) -> list[Markup]:
    ticks = _round_values(y.low, y.high, 4) if ticks is None else ticks
    names = [f"{tick:g}" for tick in ticks] if names is None else names
    parts = []
    for tick, name in zip(ticks, names, strict=True):
        line = Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y(tick), WIDTH - RIGHT)
        parts += [line, _text(LEFT - 6, y(tick) + 4, name, "end")]
    return parts


def _line(points: Sequence[tuple[float, float]], name: str, title: str | None = None) -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else Markup("")
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    return Markup('<path class="{}" d="{}">{}</path>').format(name, path, inside)


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(name, x, y, anchor, escape(text))


def _round_values(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about so many."""
    raw = (high - low) / about or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _steps(last: int) -> list[int]:
    """1, some round numbers, and the last."""
    inner = [int(value) for value in _round_values(1, last, 4) if value == int(value) and 1 < value < 0.93 * last]
    return [1, *inner, *([last] if last > 1 else [])]


def _short(number: int) -> str:
    return f"{number // 1_000_000}M" if number >= 1_000_000 else f"{number // 1000}k" if number >= 1000 else str(number)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
