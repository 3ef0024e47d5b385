"""A control: another method, with culprits and other rows mixed up."""

from __future__ import annotations

from rept.correction.correction import Correction
from rept.correction.evidence import Evidence
from rept.correction.method import RepairMethod


class Shuffled(RepairMethod):
    """Estimates what ``method`` does from states whose labels (traced row or other row) are permuted.

    Args:
        method: that estimates.
        seed: of the permutation.
    """

    def __init__(self, method: RepairMethod, seed: int = 0) -> None:
        self.method, self.seed = method, seed
        self.places, self.strengths = method.places, method.strengths

    def __call__(self, evidence: Evidence) -> Correction:
        return self.method(evidence.permuted(self.seed))
