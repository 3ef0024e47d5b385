"""Chooses layer, place and strength of a correction, on training rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.correction.clean_answers import AnswerPair
from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence, Rows, RowStates
from rept.correction.method import RepairMethod
from rept.correction.repair import corrected
from rept.correction.side_effects import culprit_probabilities, divergence, log_probabilities
from rept.data.datamodule import AttributionDataModule
from rept.types import PreTrainedModel

_AS_WELL = 0.1  # smaller differences of a gate's separation are noise
_DIGITS = 3  # of the divergence, in nats: smaller differences are noise
_MOST_POSITIONS = 4096  # of clean rows, at which the divergence is measured: their log-probabilities stay in memory


@dataclass(frozen=True)
class Rule:
    """Which candidate is chosen: of those that are effective within the budget, the one that changes least.

    Of those of the smallest strength, gates count that separate at most 0.1 worse than the best one. These candidates
    are sorted by the share of other rows that they change, then by their mean divergence to three digits; among equals
    the last layer is taken, where a behaviour shows whichever way it was called. If none is both, the most effective
    one within the budget; if none is within it, the one with the least divergence.

    Attributes:
        likelihood: effective is a correction under which some token of the culprit words is at most this many times as
            probable as before, in the mean over the rows held back.
        clean_kl: the budget: 95th percentile, over all positions of other rows held back, of the divergence of the next
            token, KL(before || after) in nats.
    """

    likelihood: float = 0.05
    clean_kl: float = 0.02

    def ordered(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Returns the candidates, the chosen one first."""
        every = list(candidates)
        met = [one for one in every if self.met(one)]
        weakest = min((one.strength for one in met), default=0.0)
        best = max((one.separation for one in met if one.strength == weakest), default=0.0)

        def key(one: Candidate) -> tuple[float, ...]:
            if self.met(one):
                worse = one.separation < best - _AS_WELL
                return 0, one.strength, worse, one.changed, round(one.divergence, _DIGITS), -one.layer
            return (1, one.likelihood) if one.percentile <= self.clean_kl else (2, one.percentile)

        return sorted(every, key=key)

    def met(self, candidate: Candidate) -> bool:
        return candidate.percentile <= self.clean_kl and candidate.likelihood <= self.likelihood


@dataclass(frozen=True)
class Candidate:
    """One correction that was tried, and what it did on the rows held back.

    Attributes:
        layer, at, strength: where it reads and acts, and the factor of its change.
        likelihood: the smallest ratio of a culprit token's probability after the correction to that before; mean over
            rows, each at most 1.
        changed: share of other rows in whose text the most probable next token changes somewhere.
        divergence, percentile: mean and 95th percentile of the next token's divergence on other rows.
        separation: of the gate, see `Correction.separation`; 0 without a gate.
    """

    layer: int
    at: At
    strength: float
    likelihood: float
    changed: float
    divergence: float
    percentile: float
    separation: float


class Choice:
    """Tries a method's candidates for one behaviour, and estimates the chosen one from all rows.

    Every second row is held back while a candidate is estimated, and judges it.

    Args:
        rows: of the behaviour.
        others: rows of other behaviours and of none.
        words: columns of culprit words, by row.
        answers: clean answers, by row, for methods that need them.
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
        answers: Mapping[int, AnswerPair],
        layers: Sequence[int],
        seed: int = 0,
    ) -> None:
        self.model, self.behaviour, self.layers = model, behaviour, layers
        self._rows = [Rows.of(data, list(rows)[half::2], words, answers) for half in (0, 1)]
        self._others = [Rows.of(data, list(others)[half::2], answers=answers) for half in (0, 1)]
        self._states = [self._read(self._rows[half], seed) for half in (0, 1)]
        self._other_states = [self._read(self._others[half], seed) for half in (0, 1)]
        self._before = culprit_probabilities(model, self._rows[1])
        self._clean_positions, self._clean_rows = _some_positions(self._others[1], seed)
        self._clean_before = list(self._clean_predictions())

    def __call__(self, method: RepairMethod, rule: Rule) -> tuple[Correction, list[Candidate]]:
        """Returns the correction that the rule chooses, estimated from all rows, and all candidates, it first."""
        tried = rule.ordered(self._tried(method, rule))
        evidence = self.evidence(tried[0].layer, tried[0].at, halves=2)
        return method.trained(method(evidence).scaled(tried[0].strength), evidence), tried

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

    def judged(self, correction: Correction) -> tuple[float, float, float, float]:
        """Returns likelihood, changed, divergence and percentile on the rows held back, see `Candidate`."""
        with corrected(self.model, [correction]):
            after = culprit_probabilities(self.model, self._rows[1])
            pairs = zip(self._clean_before, self._clean_predictions(), strict=True)
            found = [(divergence(before, now), before.argmax(-1) != now.argmax(-1)) for before, now in pairs]
        # The product over a long phrase is small where each token is only a little less probable, and still said.
        least = [(now - before).min() for now, before in zip(after, self._before, strict=True)]
        likelihood = torch.stack(least).exp().clamp_max(1.0).mean()
        kl, turned = (torch.cat(parts) for parts in zip(*found, strict=True))
        changed = torch.zeros(int(self._clean_rows.max()) + 1).index_add(0, self._clean_rows, turned.float()) > 0
        return likelihood.item(), changed.float().mean().item(), kl.mean().item(), torch.quantile(kl, 0.95).item()

    def _clean_predictions(self) -> Iterator[Tensor]:
        for batch, positions in zip(self._others[1].batches, self._clean_positions, strict=True):
            yield log_probabilities(self.model, batch.input_ids, positions)

    def _tried(self, method: RepairMethod, rule: Rule) -> Iterator[Candidate]:
        """Candidates up to the smallest strength at which one meets the rule: a stronger one is never chosen."""
        places = list(itertools.product(self.layers, method.places))
        made = [method(self.evidence(layer, at, halves=1)) for layer, at in places]
        culprits, others = self._states[1].reads, self._other_states[1].anywhere
        apart = [one.separation(culprits[place], others[place[0]]) for place, one in zip(places, made, strict=True)]
        for strength in sorted(method.strengths):
            found = [
                Candidate(layer, at, strength, *self.judged(correction.scaled(strength)), separation)
                for (layer, at), correction, separation in zip(places, made, apart, strict=True)
            ]
            yield from found
            if any(map(rule.met, found)):
                return

    def _read(self, rows: Rows, seed: int) -> RowStates:
        return RowStates.of(self.model, rows, self.layers, PLACES, seed)


def _some_positions(rows: Rows, seed: int) -> tuple[list[Tensor], Tensor]:
    """Positions of prompts and responses in each batch, drawn if there are many, and the row's number of each (n)."""
    every = [torch.arange(b.input_ids.shape[1]) < b.length[:, None] for b in rows.batches]
    share = _MOST_POSITIONS / max(1, sum(int(mask.sum()) for mask in every))
    generator = torch.Generator().manual_seed(seed)
    chosen = [mask & (torch.rand(mask.shape, generator=generator) < share) for mask in every]
    starts = itertools.accumulate(map(len, rows.batches), initial=0)
    numbers = [mask.nonzero()[:, 0] + start for mask, start in zip(chosen, starts, strict=False)]
    return [mask.flatten().nonzero()[:, 0] for mask in chosen], torch.cat(numbers)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        [batch for part in parts for batch in part.batches],
        {k: v for part in parts for k, v in part.words.items()},
        [pair for part in parts for pair in part.clean],
    )
