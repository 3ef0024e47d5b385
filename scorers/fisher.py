"""Fisher's linear discriminant between a behaviour's queries and the training rows."""

from __future__ import annotations

from collections.abc import Sequence

from rept.errors import UsageError
from rept.ranking.behaviour_scorer import BehaviourScorer, Direction, Examples
from rept.ranking.spectrum import Spectrum


class Fisher(BehaviourScorer):
    """``s(x) = (x - mu)^T (C + r I)^-1 (m - mu)``: the direction in which the queries differ most from ordinary rows.

    It weighs each direction by how little the training rows vary in it (Fisher 1936), which takes many queries: with
    few, their own peculiarities in directions of low variance decide.

    Args:
        shrinkage: r as a share of the mean variance, above 0.

    Raises:
        UsageError: shrinkage is not above 0.
    """

    def __init__(self, shrinkage: float = 0.1) -> None:
        if shrinkage <= 0:
            raise UsageError(f"Expected behaviour_scorer.shrinkage to be above 0, but got {shrinkage}.")
        self.shrinkage = shrinkage

    def directions(self, examples: Examples, rows: Spectrum) -> Sequence[Direction]:
        return [Direction(examples.shift, self.shrinkage * max(rows.trace / len(rows.axes), 1e-30), cosine=False)]
