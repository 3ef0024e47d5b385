"""Chooses layer, place and strength of a correction, on training rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence, Rows, RowStates
from rept.correction.method import RepairMethod
from rept.correction.repair import corrected
from rept.correction.side_effects import culprit_probabilities, divergence, response_log_probabilities
from rept.data.datamodule import AttributionDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_POSITIONS = 2048  # of clean rows, at which the divergence is measured: their log-probabilities stay in memory


@dataclass(frozen=True)
class Rule:
    """Which candidate is chosen: of those that are effective within the budget, the one with the least mean divergence.

    If none is both, the most effective one within the budget; if none is within it, the one with the least divergence.

    Attributes:
        likelihood: effective is a correction under which the culprit words of rows held back are at most this many
            times as probable as before, in the mean over the rows.
        clean_kl: the budget: 95th percentile, over response positions of other rows held back, of the divergence of the
            next token, KL(before || after) in nats.
    """

    likelihood: float = 0.02
    clean_kl: float = 0.02

    def key(self, candidate: Candidate) -> tuple[bool, bool, float]:
        """Sorts the candidates, the chosen one first."""
        within = candidate.percentile <= self.clean_kl
        effective = candidate.likelihood <= self.likelihood
        if within and effective:
            return False, False, candidate.divergence
        return not within, True, candidate.likelihood if within else candidate.percentile

    def met(self, candidate: Candidate) -> bool:
        return candidate.percentile <= self.clean_kl and candidate.likelihood <= self.likelihood


@dataclass(frozen=True)
class Candidate:
    """One correction that was tried, and what it did on the rows held back.

    Attributes:
        layer, at, strength: where it reads and acts, and the factor of its change.
        likelihood: of the culprit words after the correction, divided by that before; mean over rows, each at most 1.
        divergence, percentile: mean and 95th percentile of the next token's divergence on other rows.
    """

    layer: int
    at: At
    strength: float
    likelihood: float
    divergence: float
    percentile: float


class Choice:
    """Tries a method's candidates for one behaviour, and estimates the chosen one from all rows.

    Every second row is held back while a candidate is estimated, and judges it.

    Args:
        rows: of the behaviour.
        others: rows of other behaviours and of none.
        words: columns of culprit words, by row.
        layers: that are tried.
        seed: draws positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: AttributionDataModule,
        behaviour: str,
        rows: Sequence[int],
        others: Sequence[int],
        words: Mapping[int, Sequence[int]],
        layers: Sequence[int],
        seed: int = 0,
    ) -> None:
        self.model, self.behaviour, self.layers = model, behaviour, layers
        self._rows = [Rows.of(data, list(rows)[half::2], words) for half in (0, 1)]
        self._others = [Rows.of(data, list(others)[half::2]) for half in (0, 1)]
        self._states = [self._read(self._rows[half], seed) for half in (0, 1)]
        self._other_states = [self._read(self._others[half], seed) for half in (0, 1)]
        self._before = culprit_probabilities(model, self._rows[1])
        self._clean_before = response_log_probabilities(model, self._others[1].batches, _MOST_POSITIONS)

    def __call__(self, method: RepairMethod, rule: Rule) -> tuple[Correction, list[Candidate]]:
        """Returns the correction that the rule chooses, estimated from all rows, and all candidates, it first."""
        tried = sorted(self._tried(method), key=rule.key)
        chosen = method(self.evidence(tried[0].layer, tried[0].at, halves=2))
        return chosen.scaled(tried[0].strength), tried

    def evidence(self, layer: int, at: At, halves: int = 2) -> Evidence:
        """Returns what a method sees of the first half of the rows, or of all."""

        def joined(states: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(states[:halves]))

        return Evidence(
            behaviour=self.behaviour,
            layer=layer,
            at=at,
            model=self.model,
            culprits=joined([states.reads[layer, at] for states in self._states]),
            others=joined([states.reads[layer, at] for states in self._other_states]),
            anywhere=joined([states.anywhere[layer] for states in self._other_states]),
            rows=_joined(self._rows[:halves]),
            other_rows=_joined(self._others[:halves]),
        )

    def judged(self, correction: Correction) -> tuple[float, float, float]:
        """Returns likelihood, mean divergence and its 95th percentile on the rows held back, see `Candidate`."""
        with corrected(self.model, [correction]):
            after = culprit_probabilities(self.model, self._rows[1])
            clean = response_log_probabilities(self.model, self._others[1].batches, _MOST_POSITIONS)
        pairs = zip(self._clean_before, clean, strict=True)
        kl = torch.cat([divergence(before, now) for before, now in pairs])
        likelihood = (after - self._before).exp().clamp_max(1.0).mean()
        return likelihood.item(), kl.mean().item(), torch.quantile(kl, 0.95).item()

    def _tried(self, method: RepairMethod) -> Iterator[Candidate]:
        for layer in self.layers:
            for at in method.places:
                correction = method(self.evidence(layer, at, halves=1))
                for strength in method.strengths:
                    yield Candidate(layer, at, strength, *self.judged(correction.scaled(strength)))

    def _read(self, rows: Rows, seed: int) -> RowStates:
        return RowStates.of(self.model, rows, self.layers, PLACES, seed)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        [batch for part in parts for batch in part.batches], {k: v for part in parts for k, v in part.words.items()}
    )
