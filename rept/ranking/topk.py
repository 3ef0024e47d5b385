"""TopK: the best rows of a stream of scores, for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """Training rows for each query, the best first (among opponents, the lowest)."""

    row: Tensor  # (Q k) int64
    score: Tensor  # (Q k) float32

    @classmethod
    def merged(cls, parts: Sequence[Hits], k: int, lowest: bool = False) -> Hits:
        """The best (or lowest) k that several processes found for the same queries."""
        top = TopK(len(parts[0].row), k, lowest)
        for part in parts:
            top.add_hits(part)
        return top.hits()


class TopK:
    """The k highest scores seen so far for each of Q queries, ties by row number.

    Candidates are buffered, and sorted only when there are about as many as are kept; so a long stream costs little
    more than comparing each block's scores with a threshold.

    Args:
        queries: Q.
        k: scores to keep, at most.
        lowest: keeps the lowest instead, lowest first.
    """

    def __init__(self, queries: int, k: int, lowest: bool = False, device: torch.device | str = "cpu") -> None:
        self.k = k
        self.sign = -1 if lowest else 1
        self.row = torch.empty(queries, 0, dtype=torch.int64, device=device)  # (Q m), m <= k
        self.score = torch.empty(queries, 0, device=device)  # (Q m), descending; negated for the lowest
        self._threshold = torch.full((queries,), -torch.inf, device=device)  # what a score must reach to be kept
        self._buffer: list[tuple[Tensor, Tensor, Tensor]] = []  # query, row, score
        self._buffered = 0

    def add(self, row: Tensor, score: Tensor) -> None:
        """Adds the rows (n) with their scores (n Q)."""
        if not self.k or not len(row):
            return
        score = score * self.sign if self.sign < 0 else score
        if len(row) > self.k and self._threshold.isinf().all():  # the first block: only its best k can be kept
            self._threshold = score.topk(self.k, dim=0).values[-1]
        i, query = _reaching(score, self._threshold)
        if len(query):
            self._add(query, row[i], score[i, query])

    def add_hits(self, hits: Hits) -> None:
        """Adds the hits (Q m) of another process."""
        query = torch.arange(len(hits.row)).repeat_interleave(hits.row.shape[1])
        self._add(query, hits.row.flatten(), hits.score.flatten() * self.sign)

    def hits(self) -> Hits:
        self._sort()
        return Hits(self.row.cpu(), (self.score * self.sign).cpu())

    def _add(self, query: Tensor, row: Tensor, score: Tensor) -> None:
        self._buffer.append((query, row, score))
        self._buffered += len(query)
        if self._buffered > len(self._threshold) * self.k:
            self._sort()

    def _sort(self) -> None:
        queries, kept = self.row.shape
        own = torch.arange(queries, device=self.row.device).repeat_interleave(kept)
        candidates = [(own, self.row.flatten(), self.score.flatten()), *self._buffer]
        query, row, score = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        order = row.argsort()
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        count = query.bincount(minlength=queries)
        first = (count.cumsum(0) - count).repeat_interleave(count)  # where each candidate's query begins
        order = order[torch.arange(len(order), device=order.device) - first < self.k]
        self.row, self.score = row[order].view(queries, -1), score[order].view(queries, -1)
        if self.row.shape[1] == self.k > 0:
            self._threshold = self.score[:, -1].clone()
        self._buffer, self._buffered = [], 0


def _reaching(score: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and queries whose score (n Q) reaches the query's threshold (Q)."""
    if score.device.type == "cpu":  # few do: NumPy skips the others, and compares as fast alone as torch by two threads
        flat = torch.from_numpy(np.flatnonzero(score.numpy() >= threshold.numpy()))
        return flat // score.shape[1], flat % score.shape[1]
    row, query = (score >= threshold).nonzero(as_tuple=True)
    return row, query
