"""The centred cosine of training rows with the mean of a behaviour's queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rept.ranking.behaviour_scorer import BehaviourScorer, Direction, Examples
from rept.ranking.spectrum import Spectrum


class Centroid(BehaviourScorer):
    """``s(x) = cos(x - mu, m - mu)``, with the mean mu of training rows and m of the queries, all of norm 1 before."""

    def directions(self, examples: Examples, rows: Spectrum) -> Sequence[Direction]:
        return [Direction(examples.shift, math.inf)]
