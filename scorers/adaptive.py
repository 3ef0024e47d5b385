"""From the single query over the centroid to the Fisher direction, as the number of queries grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from rept.ranking.behaviour_scorer import BehaviourScorer, Direction, Examples, deviations
from rept.ranking.spectrum import Spectrum

_STEPS = [10 ** (step / 2) for step in range(-4, 7)]  # ridges, in units of the mean variance


class Adaptive(BehaviourScorer):
    """A cosine in the metric ``(C + r I)^-1``, whose ridge r is estimated from the queries and from the training rows.

    From the queries: if the true shift has the prior covariance ``a C^2`` and the error of the mean of k queries has
    ``(t / k) C``, the posterior mean of the Fisher direction is ``(C + r I)^-1 shift`` with ``r = t / (k a)``;
    a follows from ``|shift|^2 = a tr C^2 + noise`` (empirical Bayes, as in James and Stein 1961).

    From the training rows: under the right metric, the rows that share the behaviour form the upper tail of the scores,
    and the others are symmetric. So r maximizes the log ratio of the upper to the lower deviation from the median,
    minus ``weight / k |log(r / r_queries)|``: with few queries the first estimate decides, with many the second.

    Args:
        weight: of the first estimate relative to the second, for one query.
    """

    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight

    def directions(self, examples: Examples, rows: Spectrum) -> Sequence[Direction]:
        mean = max(rows.trace / len(rows.axes), 1e-30)  # of rows that are all alike: any ridge will do
        return [Direction(examples.shift, step * mean) for step in _STEPS]

    def choose(self, examples: Examples, rows: Spectrum, candidates: Sequence[Direction], scores: Tensor) -> int:
        _, below, above = deviations(scores)
        asymmetry = (above / below.clamp(min=1e-300)).clamp(min=1e-300).log().tolist()
        expected = min(max(self._ridge(examples, rows), candidates[0].ridge), candidates[-1].ridge)
        penalty = [self.weight / examples.count * abs(math.log(one.ridge / expected)) for one in candidates]
        return max(range(len(candidates)), key=lambda i: asymmetry[i] - penalty[i])

    def _ridge(self, examples: Examples, rows: Spectrum) -> float:
        signal = max(float(examples.shift.square().sum()) - examples.noise, 0.0)
        if not signal or not rows.trace:  # rows that are all alike have no metric
            return math.inf
        return examples.noise / rows.trace * rows.square / signal
