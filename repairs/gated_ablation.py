"""Gated ablation: removes what the culprits' states have beside others', only where a state is like the culprits'."""

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
    """Removes the culprits' main directions where the state lies on the culprits' side of a Fisher direction.

        h <- h - R^T R (h - mu)        where h . d > t

    R are the first ``rank`` right singular vectors of the culprits' states minus mu, the mean of the others':
    the mean difference alone is not all that single wordings have. d = C^-1 (mean of the culprits - mu), with C halfway
    between the covariances of the culprits' states and of the others': without the former, states of other wordings lie
    on the wrong side. t is ``margin`` of the way from the 99.9th percentile of the other rows' states at any position
    to the culprits' 10th percentile: new prompts resemble the traced rows less than these resemble one another.

    Args:
        places: where states are read: last_prompt, words; each is tried.
        strengths: factors of the change; each is tried.
        rank: directions that are removed.
        shrinkage: share of the mean variance that is added to C's diagonal.
        margin: see above.
    """

    def __init__(
        self,
        places: Sequence[At] = PLACES,
        strengths: Sequence[float] = (1.0, 1.5, 2.0),
        rank: int = 4,
        shrinkage: float = 0.1,
        margin: float = 0.1,
    ) -> None:
        self.places, self.strengths, self.rank = places, strengths, rank
        self.shrinkage, self.margin = shrinkage, margin

    def __call__(self, evidence: Evidence) -> Correction:
        centre = evidence.others.mean(0)
        _, _, directions = torch.linalg.svd((evidence.culprits - centre).double(), full_matrices=False)
        main = directions[: self.rank].to(centre)
        found = Correction.ablation(evidence.behaviour, evidence.layer, main, centre)
        gate = fisher_direction(evidence, self.shrinkage)
        culprits = torch.quantile(evidence.culprits.double() @ gate.double(), 0.1)
        others = torch.quantile(evidence.anywhere.double() @ gate.double(), 0.999)
        threshold = torch.lerp(others, culprits, self.margin).to(gate.dtype).item()  # no finer than the states
        return replace(found, gate=gate, threshold=threshold)


def fisher_direction(evidence: Evidence, shrinkage: float) -> Tensor:
    """The direction (D), of norm 1, that separates culprits and other rows best, by the mean covariance of both."""
    kinds = (evidence.culprits, torch.cat([evidence.others, evidence.anywhere]))
    covariance = torch.stack([torch.cov(states.double().T) for states in kinds]).mean(0)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean())
    solved = torch.linalg.solve(covariance, evidence.difference.double())
    return normalize(solved, dim=0).to(evidence.difference.dtype)
