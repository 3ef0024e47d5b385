"""TopK: the best rows of a stream of scores, query by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """Training rows for each query, the first being the best (or the lowest, among opponents)."""

    row: Tensor  # (Q k) int64
    score: Tensor  # (Q k) float32

    @classmethod
    def merged(cls, parts: Sequence[Hits], k: int, lowest: bool = False) -> Hits:
        """The best (or lowest) k of what several processes found for the same queries."""
        top = TopK(len(parts[0].row), k, lowest)
        for part in parts:
            top.add_hits(part)
        return top.hits()


class TopK:
    """The k highest scores seen so far for each of Q queries, ties by row number.

    Scores that may be among them are put by, and sorted in only when there are about as many as are kept; so a long
    stream costs little more than a look at each block's highest scores.

    Args:
        queries: Q.
        k: at most this many are kept.
        lowest: keeps the lowest instead, lowest first.
    """

    def __init__(self, queries: int, k: int, lowest: bool = False, device: torch.device | str = "cpu") -> None:
        self.k = k
        self.sign = -1 if lowest else 1
        self.row = torch.empty(queries, 0, dtype=torch.int64, device=device)  # (Q m), m <= k
        self.score = torch.empty(queries, 0, device=device)  # (Q m), descending; negated for the lowest
        self._bar = torch.full((queries,), -torch.inf, device=device)  # what a score must reach to be kept
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # query, row, score
        self._count = 0  # of those that wait

    def add(self, row: Tensor, score: Tensor) -> None:
        """Takes the rows (n) with their scores (n Q)."""
        if not self.k or not len(row):
            return
        score = score * self.sign if self.sign < 0 else score
        if len(row) > self.k and self._bar.isinf().all():  # what is below the best k of the first block is out
            self._bar = score.topk(self.k, dim=0).values[-1]
        i, query = _where(score >= self._bar)
        if len(query):
            self._wait(query, row[i], score[i, query])

    def add_hits(self, hits: Hits) -> None:
        """Takes the hits (Q m) of another process."""
        query = torch.arange(len(hits.row)).repeat_interleave(hits.row.shape[1])
        self._wait(query, hits.row.flatten(), hits.score.flatten() * self.sign)

    def hits(self) -> Hits:
        self._sort_in()
        return Hits(self.row.cpu(), (self.score * self.sign).cpu())

    def _wait(self, query: Tensor, row: Tensor, score: Tensor) -> None:
        self._waiting.append((query, row, score))
        self._count += len(query)
        if self._count > len(self._bar) * self.k:
            self._sort_in()

    def _sort_in(self) -> None:
        queries, kept = self.row.shape
        own = torch.arange(queries, device=self.row.device).repeat_interleave(kept)
        everyone = [(own, self.row.flatten(), self.score.flatten()), *self._waiting]
        query, row, score = (torch.cat(parts) for parts in zip(*everyone, strict=True))
        order = row.argsort()
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        count = query.bincount(minlength=queries)
        first = (count.cumsum(0) - count).repeat_interleave(count)  # where each candidate's query begins
        order = order[torch.arange(len(order), device=order.device) - first < self.k]
        self.row, self.score = row[order].view(queries, -1), score[order].view(queries, -1)
        if self.row.shape[1] == self.k > 0:
            self._bar = self.score[:, -1].clone()
        self._waiting, self._count = [], 0


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where a mask (n Q) is true."""
    if mask.device.type == "cpu":  # NumPy skips what is false: most of it, and torch does not
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
        return flat // mask.shape[1], flat % mask.shape[1]
    return mask.nonzero(as_tuple=True)
