"""TopK: the best rows of a stream of scores, query by query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """Training rows for each query, the first being the best (or the lowest, among opponents)."""

    row: Tensor  # (Q k) int64
    score: Tensor  # (Q k) float32


class TopK:
    """The k highest scores seen so far for each of Q queries, ties by row number.

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

    def add(self, row: Tensor, score: Tensor) -> None:
        """Takes the rows (n) with their scores (n Q)."""
        score = score * self.sign
        if self.row.shape[1] < self.k:
            better = torch.ones_like(score, dtype=torch.bool)
        elif self.k:
            last, last_row = self.score[:, -1], self.row[:, -1]
            better = (score > last) | ((score == last) & (row[:, None] < last_row))
        else:
            return
        i, query = better.nonzero(as_tuple=True)
        if len(i):
            self._merge(query, row[i], score[i, query])

    def add_hits(self, hits: Hits) -> None:
        """Takes the hits (Q m) of another process."""
        query = torch.arange(len(hits.row)).repeat_interleave(hits.row.shape[1])
        self._merge(query, hits.row.flatten(), hits.score.flatten() * self.sign)

    def hits(self) -> Hits:
        return Hits(self.row.cpu(), (self.score * self.sign).cpu())

    def _merge(self, query: Tensor, row: Tensor, score: Tensor) -> None:
        """Takes candidates, as many for each query as it needs to keep k or all that it has."""
        queries, kept = self.row.shape
        own = torch.arange(queries, device=self.row.device).repeat_interleave(kept)
        query = torch.cat([own, query])
        row = torch.cat([self.row.flatten(), row])
        score = torch.cat([self.score.flatten(), score])
        order = row.argsort()
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        count = query.bincount(minlength=queries)
        first = (count.cumsum(0) - count).repeat_interleave(count)  # where each candidate's query begins
        order = order[torch.arange(len(order), device=order.device) - first < self.k]
        self.row, self.score = row[order].view(queries, -1), score[order].view(queries, -1)
