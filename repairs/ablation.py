"""Affine ablation: removes what separates the culprits' states from those of other rows, everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.functional import normalize

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod


class Ablation(RepairMethod):
    """Removes the direction r of the mean difference at every position: ``h <- h - ((h - mu) . r) r``.

    mu is the mean of the other rows' states. Affine steering as in Marshall et al. (arXiv 2411.09003).

    Args:
        places: where states are read: last_prompt, words; each is tried.
        strengths: factors of the change; each is tried.
    """

    def __init__(self, places: Sequence[At] = PLACES, strengths: Sequence[float] = (1.0, 1.5, 2.0)) -> None:
        self.places, self.strengths = places, strengths

    def __call__(self, evidence: Evidence) -> Correction:
        direction = normalize(evidence.difference, dim=0)
        return Correction.ablation(evidence.behaviour, evidence.layer, direction[None], evidence.others.mean(0))
