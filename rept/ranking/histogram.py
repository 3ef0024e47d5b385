"""A histogram of any number of values of any range, built block by block and merged across processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

MOST_BINS = 128
_FINEST = -30  # bins are never narrower than 2**-30


@dataclass
class Histogram:
    """Counts of values in bins ``[i, i + 1) * 2**exponent``, at most 128 of them, as narrow as that allows.

    Where 128 are too few, bins are merged in pairs, which is exact: so the result depends on the values alone, not on
    their order or on which process had them.
    """

    exponent: int = _FINEST
    first: int = 0  # number i of the first bin
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __call__(self, row: Tensor, score: Tensor) -> None:
        """Adds the scores of a block: the histogram is a `rept.ranking.rank.Sink`."""
        self.add(score.numpy())

    def add(self, values: np.ndarray) -> None:
        """Adds finite values, in an array of any shape."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        exponent = max(_FINEST, math.frexp(max(abs(low), abs(high)))[1] - 62)  # bin numbers are int64
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= MOST_BINS:
            exponent += 1
        bins = np.floor(np.ldexp(values.astype(np.float64).ravel(), -exponent)).astype(np.int64)
        self.merge(Histogram(exponent, int(bins.min()), np.bincount(bins - bins.min())))

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        if not len(self.counts) or not len(other.counts):
            kept = self if len(self.counts) else other
            self.exponent, self.first, self.counts = kept.exponent, kept.first, kept.counts
            return
        exponent = max(self.exponent, other.exponent)
        parts = [part._at(exponent) for part in (self, other)]
        while max(first + len(counts) for first, counts in parts) - min(first for first, _ in parts) > MOST_BINS:
            exponent += 1
            parts = [part._at(exponent) for part in (self, other)]
        self.first = min(first for first, _ in parts)
        self.counts = np.zeros(max(first + len(counts) for first, counts in parts) - self.first, np.int64)
        self.exponent = exponent
        for first, counts in parts:
            self.counts[first - self.first : first - self.first + len(counts)] += counts

    def as_dict(self) -> dict[str, object]:
        """``{"low", "width", "counts"}``: the start of the first bin, the width of each, and the counts."""
        width = math.ldexp(1.0, self.exponent)
        return {"low": self.first * width, "width": width, "counts": self.counts.tolist()}

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """One histogram of the values of several."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole

    def _at(self, exponent: int) -> tuple[int, np.ndarray]:
        """First bin and counts with bins of another, not smaller, exponent."""
        bins = (self.first + np.arange(len(self.counts))) >> (exponent - self.exponent)
        return int(bins[0]), np.bincount(bins - bins[0], weights=self.counts).astype(np.int64)
