"""A small learned correction of states, trained on the traced rows against the model's own clean predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.method import RepairMethod
from rept.correction.side_effects import corrected_divergence, unlikelihood
from rept.model.placement import input_device


class LowRank(RepairMethod):
    """Learns ``h <- h + (V h + a) U`` of a given rank, ReFT-like (Wu et al., arXiv 2404.03592), with Adam.

    The loss is the probability of the traced rows' culprit words, -log(1 - p) in the mean over tokens, plus ``penalty``
    times KL(before || after) at the response positions of other rows.

    Args:
        rank: of the correction.
        steps: of Adam; each takes one batch of either kind.
        learning_rate: of Adam.
        penalty: weight of the divergence.
        places: unused but for the choice: the correction acts everywhere.
        strengths: factors of the change; each is tried.
        seed: of the initial weights.
    """

    def __init__(
        self,
        rank: int = 4,
        steps: int = 60,
        learning_rate: float = 0.01,
        penalty: float = 10.0,
        places: Sequence[At] = PLACES[:1],
        strengths: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        self.rank, self.steps, self.learning_rate, self.penalty = rank, steps, learning_rate, penalty
        self.places, self.strengths, self.seed = places, strengths, seed

    def __call__(self, evidence: Evidence) -> Correction:
        generator = torch.Generator().manual_seed(self.seed)
        width, scale = evidence.culprits.shape[1], evidence.culprits.std().item()
        read = torch.randn(self.rank, width, generator=generator) / (scale * width**0.5)
        parts = [read, torch.zeros(self.rank), torch.zeros(self.rank, width)]
        learnt = [part.to(input_device(evidence.model)).requires_grad_() for part in parts]
        optimizer = torch.optim.Adam(learnt, lr=self.learning_rate * scale)
        model, both = evidence.model, (evidence.rows.batches, evidence.other_rows.batches)
        for step in range(self.steps):
            rows, other = (batches[step % len(batches)] for batches in both)
            with torch.enable_grad():
                made = [self._made(evidence, learnt)]
                shown = unlikelihood(model, made, evidence.rows, rows)
                loss = shown + self.penalty * corrected_divergence(model, made, other, other).mean()
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
        return self._made(evidence, [part.detach().cpu() for part in learnt])

    def _made(self, evidence: Evidence, parts: Sequence[Tensor]) -> Correction:
        read, offset, write = parts
        return Correction(evidence.behaviour, evidence.layer, read, offset, write)
