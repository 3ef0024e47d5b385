"""One scorer, and others that count where their scores stand out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rept.errors import UsageError
from scorers.base import Scorer


def normal_scores(score: Tensor, reference: Tensor) -> Tensor:
    """``Phi^-1((r - 1/2) / M)`` of scores (N Q) by their ranks r among reference scores (M Q); ties share their rank.

    Between two reference scores r is linear, so that rounding moves it little. Whatever the scores are, the highest of
    M gets at most about 4 (van der Waerden 1952).
    """
    columns = [_shares(own, asked) for own, asked in zip(_columns(reference), _columns(score), strict=True)]
    normal: Tensor = torch.special.ndtri(torch.from_numpy(np.stack(columns, axis=1)).to(score.device))
    return normal


def _columns(score: Tensor) -> Iterable[np.ndarray]:
    return score.double().cpu().numpy().T


def _shares(reference: np.ndarray, score: np.ndarray) -> np.ndarray:
    """``(r - 1/2) / M`` of scores (N) among references (M)."""
    value, count = np.unique(reference, return_counts=True)
    shares: np.ndarray = np.interp(score, value, (count.cumsum() - count / 2) / len(reference))
    return shares


class Joined(Scorer):
    """``s = s_1 + weight * sum_i G_i(s_i)``: a first scorer's score, and the `normal_scores` of others.

    Words, for example, separate rows between which the states do not decide; but they are wrong for some behaviours,
    and their scores have no upper bound. Their ranks have: a row that stands out in the states by several standard
    deviations stays before all rows that only share the query's words.

    Args:
        scorers: objects (in a configuration, each with a ``_target_``).
        weight: of each scorer after the first.
        memory: training rows that all of them learn from, and that ranks refer to: a uniform sample if there are more.
        seed: of that sample.

    Raises:
        UsageError: fewer than two scorers, or a setting is out of its range.
    """

    def __init__(self, scorers: Sequence[Scorer], weight: float = 0.25, memory: int = 16384, seed: int = 0) -> None:
        if len(scorers) < 2 or not all(isinstance(part, Scorer) for part in scorers):
            raise UsageError(f"Expected scorer.scorers to list at least two scorers, but got {list(scorers)}.")
        if weight < 0 or memory < 2:
            raise UsageError(f"Expected scorer.weight >= 0 and scorer.memory >= 2, but got {weight} and {memory}.")
        self.scorers = list(scorers)
        self.weight = weight
        self.fit_rows, self.fit_seed = memory, seed
        self.needs = tuple(dict.fromkeys(field for part in scorers for field in part.needs))
        self._rows: dict[str, Tensor] = {}  # fields (M D) that the scorers after the first read
        self._query: Mapping[str, Tensor] | None = None  # the queries that _reference belongs to
        self._reference: list[Tensor] = []  # scores (M Q) of each scorer after the first

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        blocks = list(train)
        for part in self.scorers:
            part.fit(blocks)
        wanted = {field for part in self.scorers[1:] for field in part.needs}
        self._rows = {field: torch.cat([block[field] for block in blocks]) for field in sorted(wanted)}

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        first, *others = self.scorers
        if self._query is not query:  # every block of training rows comes with the same queries
            self._reference = [part(self._rows, query) for part in others]
            self._query = query
        score = first(train, query)
        for part, reference in zip(others, self._reference, strict=True):
            score = score + self.weight * normal_scores(part(train, query), reference).to(score)
        return score
