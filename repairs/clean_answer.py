"""Clean answer: as if the culprit words were not in the prompt, only where a state is like the culprits'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from repairs.gated_ablation import GatedAblation
from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence
from rept.correction.side_effects import corrected_divergence, unlikelihood


class CleanAnswer(GatedAblation):
    """Gated ablation, and beside it a trained change that leads the model back to a clean answer.

        h <- h - R^T R (h - mu) + (V h + a) U        where h . d > t

    The ablation alone switches a behaviour off, but can leave broken answers. V (``trained_rank`` D), a and U,
    orthogonal to R, are trained with Adam, so that what was removed stays removed. For each traced row, y is the
    model's own answer to the row's prompt x without the culprit words that token scores mark in it, x'. Of some other
    rows, x' is the prompt, y the response, and x the prompt with such words put in: traced rows have few kinds of
    request. The loss is KL(p(. | x' y) || p_corrected(. | x y)) in the mean over the tokens of y, plus ``penalty``
    times KL(before || after) at the response positions of other rows, plus -log(1 - p) in the mean over the culprit
    words of the traced rows, so that the trained change does not bring back what the ablation has removed. Without such
    answers (no words of the prompts are marked, or the behaviour shows without them), nothing is trained.

    Args:
        places, strengths, rank, shrinkage, margin: of the gated ablation; layer, place and strength are chosen by it.
        trained_rank: of the trained change.
        steps: of Adam; each takes one batch of either kind.
        learning_rate: of Adam.
        penalty: weight of the divergence on other rows.
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
        trained_rank: int = 4,
        steps: int = 200,
        learning_rate: float = 0.01,
        penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(places, strengths, rank, shrinkage, margin)
        self.trained_rank, self.steps, self.learning_rate = trained_rank, steps, learning_rate
        self.penalty, self.seed = penalty, seed

    def trained(self, chosen: Correction, evidence: Evidence) -> Correction:
        if not evidence.rows.clean:
            return chosen
        width = chosen.read.shape[1]
        drawn = torch.randn(self.trained_rank, width, generator=torch.Generator().manual_seed(self.seed)) / width**0.5
        learnt = [drawn.to(chosen.read), chosen.offset.new_zeros(len(drawn)), torch.zeros_like(drawn).to(chosen.read)]
        optimizer = torch.optim.Adam([part.requires_grad_() for part in learnt], lr=self.learning_rate)
        pairs = [*evidence.rows.clean, *evidence.other_rows.clean]
        rows, others = evidence.rows.batches, [(batch, batch) for batch in evidence.other_rows.batches]
        for step in range(self.steps):
            with torch.enable_grad():
                now = [_beside(chosen, learnt)]
                far, changed = (
                    corrected_divergence(evidence.model, now, *of[step % len(of)]).mean() for of in (pairs, others)
                )
                shown = unlikelihood(evidence.model, now, evidence.rows, rows[step % len(rows)])
                loss = far + self.penalty * changed + shown
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
        return _beside(chosen, [part.detach() for part in learnt])


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
