"""How far a correction is from giving clean answers where culprit words ask for others, and what else it changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from rept.correction.correction import Correction
from rept.correction.evidence import Evidence
from rept.correction.side_effects import (
    corrected_divergence,
    corrected_log_probabilities,
    culprit_log_probabilities,
    divergence,
    open_at,
    response_log_probabilities,
)
from rept.model.hooks import Response
from rept.types import Batch

_UNLIKELY = math.log(0.01)  # a greedy answer has no such token


class CleanAnswerLoss:
    """The loss by which a gated correction learns clean answers, batch by batch; the sum of

    - KL(p(. | x' y) || p_corrected(. | x y)), mean over the tokens of y, a clean answer to x' and wanted for x;
    - ``penalty`` times KL(before || after) at the response positions of other rows like the traced ones. Few of them
      pass the gate, so here its threshold is lowered to the ``near`` quantile of its values at any of their positions;
    - max(0, log p - max(log q, log 0.01)), with p and q the probabilities of culprit words under the correction and
      under ``start``, so that what ``start`` has removed does not come back: mean over their tokens in the traced rows,
      and, for their beginning wherever y goes on otherwise, sum over the tokens of y and mean over the answers.

    Args:
        start: a correction with a gate.
        evidence: whose rows have clean answers.
    """

    def __init__(self, start: Correction, evidence: Evidence, penalty: float, near: float) -> None:
        self.model, self.rows, self.penalty = evidence.model, evidence.rows, penalty
        self.pairs = [*evidence.rows.clean, *evidence.other_rows.clean]
        self.first = evidence.rows.first_tokens()
        low = _lowered(start, evidence, near)
        self.threshold = low.threshold
        passing = (_passing(low, evidence, batch) for batch in evidence.other_rows.batches)
        self.near = [batch for batch in passing if len(batch)]
        with torch.no_grad():
            self.culprits = [culprit_log_probabilities(self.model, [start], self.rows, b) for b in self.rows.batches]
            self.begun = [self._begins(asked, start)[1] for asked, _ in self.pairs]

    def __call__(self, made: Correction, step: int) -> Tensor:
        """Returns the loss of a correction on the batches of a step, with gradients where they are enabled."""
        pair, batch = step % len(self.pairs), step % len(self.rows.batches)
        asked, answered = self.pairs[pair]
        after, begins = self._begins(asked, made)
        total = divergence(response_log_probabilities(self.model, answered).to(after.device), after).mean()
        culprits = culprit_log_probabilities(self.model, [made], self.rows, self.rows.batches[batch])
        total = total + _risen(culprits, self.culprits[batch]) / max(1, len(culprits))
        total = total + _risen(begins, self.begun[pair]) / len(asked)
        if self.near:
            other, lowered = self.near[step % len(self.near)], replace(made, threshold=self.threshold)
            total = total + self.penalty * corrected_divergence(self.model, [lowered], other, other).mean()
        return total

    def _begins(self, asked: Batch, correction: Correction) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all tokens (n V), and (n) of culprit words' first ones, -inf where y goes on by one."""
        logs = corrected_log_probabilities(self.model, [correction], asked)
        expected = torch.isin(Response.of(asked.labels).target, torch.tensor(self.first, dtype=torch.int64))
        return logs, logs[:, self.first].logsumexp(1).masked_fill(expected.to(logs.device), -torch.inf)


def _lowered(correction: Correction, evidence: Evidence, near: float) -> Correction:
    """The correction with a gate that more of the other rows pass."""
    values = evidence.anywhere.double() @ cast("Tensor", correction.gate).double()
    return replace(correction, threshold=min(correction.threshold, torch.quantile(values, near).item()))


def _passing(correction: Correction, evidence: Evidence, batch: Batch) -> Batch:
    """The samples of a batch in which the gate is open somewhere."""
    return batch.select(open_at(evidence.model, [correction], batch).any(1).nonzero().flatten().tolist())


def _risen(now: Tensor, before: Tensor) -> Tensor:
    """The sum by which log-probabilities (n) exceed what they were, where they exceed `_UNLIKELY`."""
    return (now - before.clamp_min(_UNLIKELY)).clamp_min(0).sum()
