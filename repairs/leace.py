"""LEACE: makes the culprits' states look like all others to any linear classifier, with the smallest change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod


class Leace(RepairMethod):
    """Least-squares concept erasure (Belrose et al., arXiv 2306.03819), of whether a state is a culprit's.

    With whitening W = C^-1/2 of all states and the covariance s of state and label, u = W s / |W s|:

        h <- h - W^+ u (W (h - mu) . u)

    After this no linear classifier separates the two better than a constant.

    Args:
        places: where states are read: last_prompt, words; each is tried.
        strengths: factors of the change; each is tried.
        shrinkage: share of the mean variance that is added to C's diagonal.
    """

    def __init__(
        self, places: Sequence[At] = PLACES, strengths: Sequence[float] = (1.0, 1.5, 2.0), shrinkage: float = 0.001
    ) -> None:
        self.places, self.strengths, self.shrinkage = places, strengths, shrinkage

    def __call__(self, evidence: Evidence) -> Correction:
        states = torch.cat([evidence.culprits, evidence.others]).double()
        whiten, unwhiten = whitening(states, self.shrinkage)
        direction = torch.nn.functional.normalize(whiten @ evidence.difference.double(), dim=0)
        read, write = (whiten @ direction)[None], -(unwhiten @ direction)[None]
        offset = -read @ states.mean(0)
        read, offset, write = (part.to(evidence.culprits) for part in (read, offset, write))
        return Correction(evidence.behaviour, evidence.layer, read, offset, write)


def whitening(states: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Returns C^-1/2 and C^1/2 (D D) of the shrunk covariance of states (n D)."""
    covariance = torch.cov(states.T)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean())
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return vectors @ torch.diag(1 / roots) @ vectors.T, vectors @ torch.diag(roots) @ vectors.T
