"""Clean answer: as if the culprit words were not in the prompt, only where a state is like the culprits'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from repairs.gated_ablation import GatedAblation
from rept.correction.clean_answer_loss import CleanAnswerLoss
from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.utils.progress import progress


class CleanAnswer(GatedAblation):
    """Gated ablation, and beside it a trained change that leads the model back to a clean answer.

        h <- h - R^T R (h - mu) + (V h + a) U        where h . d > t

    The ablation alone switches a behaviour off, but can leave broken answers. V (``trained_rank`` D), a and U,
    orthogonal to R, are trained with Adam, so that what was removed stays removed. For each traced row, y is the
    model's own answer to the row's prompt x without the culprit words that token scores mark in it, x'. Of some other
    rows, x' is the prompt, y the response, and x the prompt with such words put in: traced rows have few kinds of
    request. Other rows, and the probabilities of culprit words, are to stay as the ablation leaves them: see
    `rept.correction.clean_answer_loss`. The parameters are their means over the second half of the steps. Without such
    answers (no words of the prompts are marked, or the behaviour shows without them), nothing is trained.

    Args:
        places, strengths, rank, shrinkage, margin: of the gated ablation; layer, place and strength are chosen by it.
        trained_rank: of the trained change.
        steps: of Adam; each takes one batch of every kind.
        learning_rate: of Adam.
        penalty: weight of the divergence on other rows.
        near: quantile from which on other rows are like the traced ones, see the loss.
        seed: of the initial weights.
    """

    needs_clean_answers = True

    def __init__(
        self,
        places: Sequence[At] = PLACES,
        strengths: Sequence[float] = (1.0, 1.5, 2.0),
        rank: int = 4,
        shrinkage: float = 0.1,
        margin: float = 0.1,
        trained_rank: int = 12,
        steps: int = 200,
        learning_rate: float = 0.01,
        penalty: float = 0.3,
        near: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(places, strengths, rank, shrinkage, margin)
        self.trained_rank, self.steps, self.learning_rate = trained_rank, steps, learning_rate
        self.penalty, self.near, self.seed = penalty, near, seed

    def trained(self, chosen: Correction, evidence: Evidence) -> Correction:
        if not evidence.rows.clean:
            return chosen
        width = chosen.read.shape[1]
        drawn = torch.randn(self.trained_rank, width, generator=torch.Generator().manual_seed(self.seed)) / width**0.5
        learnt = [drawn.to(chosen.read), chosen.offset.new_zeros(len(drawn)), torch.zeros_like(drawn).to(chosen.read)]
        optimizer = torch.optim.Adam([part.requires_grad_() for part in learnt], lr=self.learning_rate)
        totals, averaged = [torch.zeros_like(part) for part in learnt], self.steps - self.steps // 2
        loss_of = CleanAnswerLoss(chosen, evidence, self.penalty, self.near)
        with progress("Training the correction", total=self.steps, unit="steps") as advance:
            for step in range(self.steps):
                with torch.enable_grad():
                    loss = loss_of(_beside(chosen, learnt), step)
                optimizer.zero_grad()
                torch.autograd.backward([loss])
                optimizer.step()
                if step >= self.steps // 2:
                    totals = [total + part.detach() for total, part in zip(totals, learnt, strict=True)]
                advance(note=f"loss {loss.item():.3f}")
        return _beside(chosen, [total / averaged for total in totals])


def _beside(chosen: Correction, learnt: Sequence[Tensor]) -> Correction:
    """The chosen correction and the trained one, which reads and writes nothing along the chosen one's directions."""
    read, offset, write = learnt
    along = normalize(chosen.read, dim=-1)
    read, write = (part - part @ along.T @ along for part in (read, write))
    return replace(
        chosen,
        read=torch.cat([chosen.read, read]),
        offset=torch.cat([chosen.offset, offset]),
        write=torch.cat([chosen.write, write]),
    )
