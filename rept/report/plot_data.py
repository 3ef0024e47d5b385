"""The plots of a run as data: what charts.py draws on the page and figures.py for papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rept.data.behaviours import behaviour_of
from rept.results.trace import Trace
from rept.signatures.layer_strategy import ADJACENT_COSINE

MOST_LABELS = 12  # lines behind the overall one


@dataclass(frozen=True)
class Line:
    points: list[tuple[float, float]]
    role: Literal["main", "secondary", "probe"] = "main"
    label: str = ""


@dataclass(frozen=True)
class Bars:
    """Counts in equal bins, for a logarithmic axis; ``tail`` counts a part of them."""

    low: float
    width: float
    counts: list[int]
    tail: list[int]
    tail_label: str


@dataclass(frozen=True)
class Plot:
    """Either lines over whole numbers, the last in front, or bars."""

    name: str  # of its file
    title: str
    caption: str
    summary: str  # the plot in words, for readers who cannot see it
    x_label: str
    y_label: str
    y_range: tuple[float, float] | None = (0, 1)  # None: from the points
    lines: Sequence[Line] = ()
    marks: Sequence[tuple[float, float, str]] = ()  # points with their names
    bars: Bars | None = None


def plots(trace: Trace) -> list[Plot]:
    """Those that the run has data for."""
    made = (layer_curve(trace), average_precision_by_layer(trace), precision_by_k(trace), score_histogram(trace))
    return [plot for plot in made if plot]


def layer_curve(trace: Trace) -> Plot | None:
    """The measure by which a layer strategy chose: its mean over the probes, single probes, and the chosen layers."""
    choice = trace.layers
    curve, measure, first = choice.get("curve"), choice["measure"], choice["first"]
    if not curve:
        return None
    probes, chosen, agreement = choice.get("probes") or [], choice["layers"], choice.get("agreement")
    agree = "" if agreement is None else f" {agreement:.0%} of {len(probes)} single probes (faint) agree."
    return Plot(
        name="layer_curve",
        title="Layer",
        caption=f"{measure.capitalize()}. {choice['reason']}{agree}",
        summary=f"{measure.capitalize()}, {len(probes)} probes; chosen: layer {', '.join(map(str, chosen))}.",
        x_label="later layer of the pair" if measure == ADJACENT_COSINE else "layer",
        y_label=measure,
        y_range=None,
        lines=[*(Line(_from(first, probe), "probe") for probe in probes), Line(_from(first, curve))],
        marks=[(x, y, f"layer {x:g}") for x, y in _from(first, curve) if x in chosen],
    )


def average_precision_by_layer(trace: Trace) -> Plot | None:
    """Each site and layer alone; None unless the run measured them (``each=true``)."""
    sites: dict[str, list[tuple[float, float]]] = {}
    for name, measured in (trace.metrics.get("each") or {}).items():
        site, _, layer = name.rpartition("/")
        value = (measured.get("overall") or {}).get("average_precision")
        if value is not None:
            sites.setdefault(site, []).append((int(layer), value))
    if not sites:
        return None
    (front, points), *_ = found = [(site, sorted(points)) for site, points in sorted(sites.items())]
    values = ", ".join(f"{value:.3f} at layer {layer}" for layer, value in points)
    lines = [Line(points, "main" if site == front else "secondary", site) for site, points in found]
    return Plot(
        name="average_precision_by_layer",
        title="Average precision by layer",
        caption=f"Each layer alone, over the whole ranking: {', '.join(site.replace('_', ' ') for site, _ in found)}.",
        summary=f"{front}: {values}.",
        x_label="layer",
        y_label="average precision",
        lines=lines[::-1],
    )


def precision_by_k(trace: Trace) -> Plot | None:
    """Mean precision at k = 1, 2, ... of the queries with a behaviour's label; None without labels on queries and hits.

    A hit counts where it has the query's label; the query itself is no hit here. As in the measures, queries with a
    label that no training row has are left out.
    """
    missing = trace.metrics.get("missing_labels", {}).get("queries", {})
    relevant: dict[str, list[list[bool]]] = {}
    for query in trace.queries:
        label, hits = behaviour_of(query["label"]), [hit for hit in trace.hits(query["query"]) if not hit.same_as_query]
        if label is not None and label not in missing and any(hit.label is not None for hit in hits):
            relevant.setdefault(label, []).append([hit.label == label for hit in hits])
    if not relevant:
        return None
    deepest = min(len(found) for queries in relevant.values() for found in queries)
    overall = _mean_precision([found for queries in relevant.values() for found in queries], deepest)
    labels = list(relevant.items())[:MOST_LABELS] if len(relevant) > 1 else []
    (_, at_first), (_, at_last) = overall[0], overall[-1]
    return Plot(
        name="precision_by_k",
        title="Precision by k",
        caption=f"Share of rows with the query's label among its first k hits{', each label faint' if labels else ''}.",
        summary=f"Precision at k from 1 to {deepest}: {at_first:.3f} at 1, {at_last:.3f} at {deepest}.",
        x_label="k",
        y_label="precision at k",
        lines=[
            *(Line(_mean_precision(found, deepest), "secondary", label) for label, found in labels),
            Line(overall, label="overall"),
        ],
    )


def score_histogram(trace: Trace) -> Plot | None:
    """None where nothing was scored, or not all rows, as `rept.ranking.faiss_index` does.

    The tail are the flagged hits of a calibrated run, else each query's best hit.
    """
    known = trace.metrics.get("scores")
    if not known or not known["counts"]:
        return None
    low, width, counts = _coarser(known["low"], known["width"], known["counts"])
    hits = [trace.hits(query) for query in trace.answered]
    calibrated = any(hit.flagged is not None for found in hits for hit in found)
    tail = [hit.score for found in hits for hit in found if (hit.flagged if calibrated else hit.rank == 1)]
    edges = low + width * np.arange(len(counts) + 1)
    in_tail: list[int] = np.histogram(np.clip(tail, edges[0], edges[-1]), edges)[0].tolist()
    label = "flagged as standing out" if calibrated else "best hit of each query"
    scores = f"{sum(counts):,} scores from {edges[0]:.3g} to {edges[-1]:.3g}"
    return Plot(
        name="score_histogram",
        title="Scores",
        caption=f"All training rows against all queries, counted on a logarithmic scale; in colour: {label}.",
        summary=f"Histogram of {scores}; {sum(in_tail):,} of them in the tail.",
        x_label="score",
        y_label="pairs",
        bars=Bars(low, width, counts, in_tail, label),
    )


def _from(first: int, values: Sequence[float]) -> list[tuple[float, float]]:
    """Points at first, first + 1, ..."""
    return list(enumerate(values, start=first))


def _coarser(low: float, width: float, counts: list[int]) -> tuple[float, float, list[int]]:
    """Bins merged two by two until there are at most ``2 sqrt(n)`` of them, or 12: n values fill no more."""
    first = round(low / width)
    while len(counts) > max(12, 2 * math.isqrt(sum(counts))):
        padded = [0] * (first % 2) + counts
        padded += [0] * (len(padded) % 2)
        counts = [a + b for a, b in zip(padded[::2], padded[1::2], strict=True)]
        first, width = first // 2, 2 * width
    return first * width, width, counts


def _mean_precision(relevant: Sequence[Sequence[bool]], deepest: int) -> list[tuple[float, float]]:
    found = np.array([queries[:deepest] for queries in relevant], float)  # (Q k)
    return _from(1, (found.cumsum(1) / np.arange(1, deepest + 1)).mean(0).tolist())
