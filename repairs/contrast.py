"""A step from the culprits' states to those of the clean rows that are nearest to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod


class Contrast(RepairMethod):
    """Adds the mean difference between the nearest clean states and the culprits': ``h <- h + mean(near(h_i) - h_i)``.

    near(h) is the mean of the other rows' states with the highest cosine after their mean is removed.

    Args:
        places: where states are read: last_prompt, words; each is tried.
        strengths: factors of the change; each is tried.
        nearest: clean states for each culprit's.
    """

    def __init__(
        self, places: Sequence[At] = PLACES, strengths: Sequence[float] = (0.5, 1.0, 1.5, 2.0), nearest: int = 8
    ) -> None:
        self.places, self.strengths, self.nearest = places, strengths, nearest

    def __call__(self, evidence: Evidence) -> Correction:
        centre = evidence.others.mean(0)
        similar = normalize(evidence.culprits - centre, dim=-1) @ normalize(evidence.others - centre, dim=-1).T
        found = similar.topk(min(self.nearest, similar.shape[1])).indices
        near = torch.stack([evidence.others[rows].mean(0) for rows in found])
        return Correction.shift(evidence.behaviour, evidence.layer, (near - evidence.culprits).mean(0))
