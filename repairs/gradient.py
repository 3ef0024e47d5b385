"""A step along the culprits' representation gradient, which makes their responses less likely."""

from __future__ import annotations

from collections.abc import Sequence

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod


class Gradient(RepairMethod):
    """Adds a vector along the mean unit gradient g of the traced rows' losses: ``h <- h + e |h| g``.

    |h| is the mean norm of the rows' states, and e the strength; adding g raises the loss of the rows' responses.

    Args:
        places: where states and gradients are read: last_prompt, words; each is tried.
        strengths: values of e; each is tried.
    """

    def __init__(self, places: Sequence[At] = PLACES, strengths: Sequence[float] = (0.1, 0.25, 0.5, 1.0)) -> None:
        self.places, self.strengths = places, strengths

    def __call__(self, evidence: Evidence) -> Correction:
        step = evidence.gradient() * evidence.culprits.norm(dim=-1).mean()
        return Correction.shift(evidence.behaviour, evidence.layer, step)
