"""Gated ablation: removes what separates the culprits' states from others, only where a state is like the culprits'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod


class GatedAblation(RepairMethod):
    """Removes the mean difference where the state lies on the culprits' side of a Fisher direction.

        h <- h - ((h - mu) . r) r        where (h - mu) . d > t

    r is the direction of the mean difference, d = C^-1 (mean of the culprits - mu) with the covariance C of the other
    rows' states, mu their mean. Along d, t lies below q, the culprits' 10th percentile, because new prompts resemble
    the traced rows less than these resemble one another: a fifth of the way from the 99.9th percentile of the other
    rows' states at any position up to q, but at least ``margin`` of the way from q to the median of those states.

    Args:
        places: where states are read: last_prompt, words; each is tried.
        strengths: factors of the change; each is tried.
        shrinkage: share of the mean variance that is added to C's diagonal.
        margin: see above.
    """

    def __init__(
        self,
        places: Sequence[At] = PLACES,
        strengths: Sequence[float] = (1.0, 1.5, 2.0, 3.0),
        shrinkage: float = 0.01,
        margin: float = 0.3,
    ) -> None:
        self.places, self.strengths, self.shrinkage, self.margin = places, strengths, shrinkage, margin

    def __call__(self, evidence: Evidence) -> Correction:
        centre = evidence.others.mean(0)
        direction = normalize(evidence.difference, dim=0)
        found = Correction.ablation(evidence.behaviour, evidence.layer, direction[None], centre)
        gate = fisher_direction(evidence, self.shrinkage)
        culprits = torch.quantile(evidence.culprits @ gate, 0.1).item()
        median, highest = torch.quantile(evidence.anywhere @ gate, torch.tensor([0.5, 0.999]).to(gate)).tolist()
        wide = culprits - self.margin * (culprits - median)
        return replace(found, gate=gate, threshold=min(wide, highest + (culprits - highest) / 5))


def fisher_direction(evidence: Evidence, shrinkage: float) -> Tensor:
    """The direction (D), of norm 1, that separates culprits from the other rows best if all have one covariance."""
    others = torch.cat([evidence.others, evidence.anywhere]).double()
    covariance = torch.cov(others.T)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean())
    solved = torch.linalg.solve(covariance, evidence.difference.double())
    return normalize(solved, dim=0).to(evidence.difference.dtype)
