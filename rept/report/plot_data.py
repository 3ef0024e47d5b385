"""The numbers behind the figures, on the page as in the pictures for papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rept.results.trace import Trace


@dataclass(frozen=True)
class Precision:
    """Mean precision at k = 1, 2, ... of the queries that have a label, overall and for each label."""

    overall: list[float]
    labels: list[tuple[str, list[float]]]


@dataclass(frozen=True)
class Scores:
    """Counts of the scores of all training rows in equal bins, and of those in the tail."""

    low: float
    width: float
    counts: list[int]
    tail: list[int]
    flagged: bool  # the tail is what the calibration flagged; else each query's best hit


def precision(trace: Trace) -> Precision | None:
    """None without labels on queries and hits. A hit counts where it has the query's label."""
    relevant: dict[str, list[list[bool]]] = {}
    for query in trace.queries:
        hits, label = trace.hits(query["query"]), query["label"]
        if label is not None and any(hit.label is not None for hit in hits):
            relevant.setdefault(label, []).append([hit.label == label for hit in hits])
    if not relevant:
        return None
    deepest = min(len(found) for lists in relevant.values() for found in lists)
    return Precision(
        overall=_mean_precision([found[:deepest] for lists in relevant.values() for found in lists]),
        labels=[(label, _mean_precision([found[:deepest] for found in lists])) for label, lists in relevant.items()],
    )


def scores(trace: Trace) -> Scores | None:
    """None where nothing was scored, or not all rows, as `rept.ranking.faiss_index` does."""
    hits = [trace.hits(query["query"]) for query in trace.queries]
    known = trace.metrics.get("scores")
    if not known or not known["counts"]:
        return None
    low, width, counts = _coarser(known["low"], known["width"], known["counts"])
    flagged = any(hit.flagged is not None for found in hits for hit in found)
    tail = [hit.score for found in hits for hit in (filter(lambda hit: hit.flagged, found) if flagged else found[:1])]
    edges = low + width * np.arange(len(counts) + 1)
    in_tail = np.histogram(np.clip(tail, edges[0], edges[-1]), edges)[0]
    return Scores(low, width, counts, in_tail.tolist(), flagged)


def by_layer(trace: Trace) -> list[tuple[str, int, float]]:
    """Site, layer and average precision of each alone; empty unless the run measured them (``each=true``)."""
    found = []
    for name, measured in (trace.metrics.get("each") or {}).items():
        site, _, layer = name.rpartition("/")
        value = (measured.get("overall") or {}).get("average_precision")
        if value is not None:
            found.append((site, int(layer), value))
    return sorted(found)


def _coarser(low: float, width: float, counts: list[int]) -> tuple[float, float, list[int]]:
    """Bins merged two by two until there are at most ``2 sqrt(n)`` of them, or 12: n values fill no more."""
    first = round(low / width)
    while len(counts) > max(12, 2 * math.isqrt(sum(counts))):
        padded = [0] * (first % 2) + counts
        padded += [0] * (len(padded) % 2)
        counts = [a + b for a, b in zip(padded[::2], padded[1::2], strict=True)]
        first, width = first // 2, 2 * width
    return first * width, width, counts


def _mean_precision(relevant: Sequence[Sequence[bool]]) -> list[float]:
    found = np.array(relevant, float)  # (Q k)
    return (found.cumsum(1) / np.arange(1, found.shape[1] + 1)).mean(0).tolist()
