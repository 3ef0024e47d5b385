"""A histogram of any number of values of any range, built block by block and merged across processes."""

from __future__ import annotations

import math
from collections import Counter
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
    counts: Counter[int] = field(default_factory=Counter)  # by number i of the bin

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
        first = int(bins.min())
        self.merge(Histogram(exponent, Counter(dict(enumerate(np.bincount(bins - first).tolist(), start=first)))))

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        exponent = max(self.exponent, other.exponent)
        while True:
            counts: Counter[int] = Counter()
            for part in (self, other):
                for i, count in part.counts.items():
                    counts[i >> (exponent - part.exponent)] += count
            if not counts or max(counts) - min(counts) < MOST_BINS:
                self.exponent, self.counts = exponent, counts
                return
            exponent += 1

    def as_dict(self) -> dict[str, object]:
        """``{"low", "width", "counts"}``: the start of the first bin, the width of each, and the counts."""
        first, last = min(self.counts, default=0), max(self.counts, default=-1)
        width = math.ldexp(1.0, self.exponent)
        return {"low": first * width, "width": width, "counts": [self.counts[i] for i in range(first, last + 1)]}

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """One histogram of the values of several."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole
