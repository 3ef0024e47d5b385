"""The figures of a suite's cases: average precisions by method and seed, and paired differences, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_RESAMPLED = 2000  # bootstrap samples of an interval
Interval = tuple[float, float, float]  # mean, and the ends of a 95 % interval


def by_behaviour(experiment: str) -> str:
    """Returns the name of the method that ranks rows once for all queries of a behaviour."""
    return f"{experiment}, by behaviour"


@dataclass
class CaseFigures:
    """One case: how often its behaviour showed, and each method's average precision of each query, by seed.

    A query's average precision by behaviour is that of its behaviour, so that the two are compared query by query.
    """

    asked: int = 0
    shown: int = 0
    found: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # by method, then by seed

    def add(self, method: str, seed: int, precision: float) -> None:
        """Adds the average precision of the next query."""
        self.found.setdefault(method, {}).setdefault(seed, []).append(precision)

    def differences(self, method: str, reference: str | None) -> dict[int, list[float]]:
        """Returns, by seed, a method's average precision of each query minus the reference's; without one, as it is."""
        found = self.found.get(method, {})
        if reference is None:
            return found
        other = self.found.get(reference, {})
        return {
            seed: [a - b for a, b in zip(found[seed], other[seed], strict=True)] for seed in found.keys() & other.keys()
        }

    def interval(self, method: str, reference: str | None = None) -> Interval | None:
        """Returns the mean of the `differences` over queries and seeds, and its 95 % `bootstrap` interval, if any."""
        return bootstrap([self.differences(method, reference)])


def mean_of_cases(cases: Collection[CaseFigures], method: str, reference: str | None = None) -> Interval | None:
    """Returns the mean over the cases that were measured, and its interval; as `CaseFigures.interval`."""
    return bootstrap([found for case in cases if (found := case.differences(method, reference))])


def bootstrap(cases: Sequence[Mapping[int, Sequence[float]]], samples: int = _RESAMPLED) -> Interval | None:
    """Returns the mean over cases of the mean over queries, and the 2.5th and 97.5th percentile of its distribution.

    Seeds are drawn with replacement, the same for all cases, then queries within each: queries of one seed share a
    model, so they are not independent (Davison and Hinkley 1997, section 3.8). A case without queries in the drawn
    seeds is left out of that draw. With one seed the interval covers its queries alone.

    Args:
        cases: the values of each case by seed.
    """
    seeds = sorted({seed for case in cases for seed, values in case.items() if len(values)})
    if not seeds:
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(seeds), size=(samples, len(seeds)))
    total, count = np.zeros((2, len(cases), samples))
    for i, case in enumerate(cases):
        for j, seed in enumerate(seeds):
            values = np.asarray(case.get(seed, ()), dtype=np.float64)
            for column in drawn.T if len(values) else ():
                at = np.flatnonzero(column == j)
                total[i, at] += values[rng.integers(len(values), size=(len(at), len(values)))].sum(axis=1)
                count[i, at] += len(values)
    with np.errstate(invalid="ignore"):
        means = np.nanmean(total / count, axis=0)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    mean = np.mean([np.mean([value for values in case.values() for value in values]) for case in cases])
    return float(mean), float(low), float(high)
