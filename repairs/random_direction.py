"""A control: the change that another method makes, in a random direction."""

from __future__ import annotations

from dataclasses import replace

import torch

from rept.correction.correction import Correction
from rept.correction.evidence import Evidence
from rept.correction.method import RepairMethod


class RandomDirection(RepairMethod):
    """Changes the same states by as much as ``method`` does, each along random directions instead.

    The rows of U are replaced by random orthogonal vectors of their norms; gate, V and a stay.

    Args:
        method: whose change it is.
        seed: of the directions.
    """

    def __init__(self, method: RepairMethod, seed: int = 0) -> None:
        self.method, self.seed = method, seed
        self.places, self.strengths = method.places, method.strengths

    def __call__(self, evidence: Evidence) -> Correction:
        found = self.method(evidence)
        drawn = torch.randn(found.write.T.shape, generator=torch.Generator().manual_seed(self.seed)).to(found.write)
        norms = found.write.norm(dim=-1, keepdim=True)
        return replace(found, write=norms * torch.linalg.qr(drawn).Q.T)
