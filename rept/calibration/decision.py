"""Decides whether any training row stands out for a query, by comparing the query with reference queries.

In each field f, with the quantities of `rept.calibration.statistics`,

    rank_f(q) = the better of two ranks among q and the R references: that of the mean of the five highest standings,
                and that of the mean of the five highest excesses; the last rank, where the mean of the five highest
                cosines is not in the highest quarter

and rank(q) is the best over the fields. The same is computed of each reference, relative to the other ones. Then

    p(q) = (1 + #{r: rank(r) <= rank(q)}) / (1 + R)

is a conformal p-value (Bates, Candes, Lei, Romano and Sesia, Annals of Statistics 2023). Queries are selected by
Benjamini-Hochberg, and hits within them at the level that selection leaves (Benjamini and Bogomolov, JRSS B 2014): a
hit's p-value is that of the query without the hits that stand out further. docs/calibration.md gives the reasons and
the limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rept.calibration.statistics import QUANTITIES, TOP_ROWS, PartialStatistics, TopRows
from rept.ranking.topk import Hits

NEAR = 0.25  # share of the references and the query among whose highest cosines the query's must be
Top = Sequence[Sequence[TopRows]]  # by quantity, then by field


@dataclass(frozen=True)
class Decision:
    """Which hits stand out. ``query`` (Q) and ``hit`` (Q k) are p-values."""

    query: Tensor
    hit: Tensor
    flagged: Tensor  # (Q k) bool
    references: int
    left_out: float  # share of the rows that a reference is not compared with, on average

    @property
    def floor(self) -> float:
        """The smallest possible p-value with so many references."""
        return 1 / (1 + self.references)

    def of_hit(self, query: int, position: int) -> dict[str, float | bool]:
        """A hit's fields in results.jsonl."""
        p_value = float(f"{self.hit[query, position]:.7g}")
        return {"p_value": p_value, "flagged": bool(self.flagged[query, position])}


def decide(parts: Sequence[PartialStatistics], best: Hits, rate: float, top_k: int) -> Decision:
    """Decides which of the ``best`` hits stand out, ``top_k`` for each query at most.

    References that no row is left to be compared with are not counted.

    Args:
        parts: the statistics that all processes collected.
        rate: false discovery rate of the queries for which any hit is flagged.
    """
    top = [
        [TopRows.merged([part.top[field][name] for part in parts], top_k) for field in parts[0].top]
        for name in QUANTITIES
    ]
    rows, compared = sum(part.rows for part in parts), torch.stack([part.compared for part in parts]).sum(0)
    # Among fewer rows the highest values are lower, so a reference's mean is over fewer of them in proportion.
    depth = (TOP_ROWS * compared / max(1, rows)).floor().clamp(min=1)
    reference = torch.stack([torch.stack([_mean(one.reference.score, depth) for one in fields]) for fields in top])
    reference = reference[..., compared > 0]  # (3 F R)
    among = ranks_among(reference)
    decided = [_query_p_values(top, i, hits, reference, among) for i, hits in enumerate(best.row)]
    query, hit = (torch.stack(p) for p in zip(*decided, strict=True))
    level = benjamini_hochberg(query, rate)
    left_out = 1 - float(compared.sum()) / max(1, rows * len(compared))
    return Decision(query, hit, hit <= level, reference.shape[-1], left_out)


def _mean(score: Tensor, depth: Tensor) -> Tensor:
    """Means (R) of the first ``depth`` (R) of scores (R m), descending; -inf ones do not count, -inf where all are."""
    counts = (torch.arange(score.shape[1]) < depth[:, None]) & (score > -torch.inf)
    return torch.where(counts.any(1), score.where(counts, 0).sum(1) / counts.sum(1), -torch.inf)


def _query_p_values(top: Top, query: int, hits: Tensor, reference: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The p-value of a query, and those (k) of its hits (k): each that of the query without the hits further out.

    Hits are ordered by the quantity and field in which the query has its best rank. A hit that is not among the top
    rows there has p-value 1.
    """
    _, (field, name) = p_values(_statistics(top, query, hits[:0]), reference, among)
    rows = top[name][field].query.row[query]
    place = _places(hits, rows)
    order = place.argsort(stable=True)
    p, _ = p_values(_statistics(top, query, hits[order[:-1]]), reference, among)  # each without those before it
    of_hits = torch.where(place[order] < len(rows), p.cummax(0).values, 1)
    return p[0], torch.empty_like(of_hits).scatter_(0, order, of_hits)


def _places(rows: Tensor, among: Tensor) -> Tensor:
    """Where each of some rows (k) is among others (m); m where it is not."""
    return (rows[:, None] != among).int().cumprod(1).sum(1)


def _statistics(top: Top, query: int, removed: Tensor) -> Tensor:
    """A query's statistics (3 F 1+k): with all rows, and without the first 1, 2, ... of ``removed`` (k)."""
    return torch.stack(
        [
            torch.stack([stepwise(one.query.row[query], one.query.score[query], removed) for one in fields])
            for fields in top
        ]
    )


def stepwise(row: Tensor, score: Tensor, removed: Tensor) -> Tensor:
    """Means (1+k) of the `TOP_ROWS` highest scores (m, descending) of rows (m), without 0, 1, ... of ``removed`` (k).

    -inf where no row is left.
    """
    step = torch.arange(len(removed) + 1)
    left = _places(row, removed) >= step[:, None]  # (1+k m); rows that are never removed have place k
    taken = left & (left.cumsum(1) <= TOP_ROWS)
    return torch.where(taken.any(1), (score * taken).sum(1) / taken.sum(1), -torch.inf)


def ranks_among(reference: Tensor) -> Tensor:
    """Ranks (... R) of references among one another, 1 for the highest; equal ones share the lower rank."""
    return (reference[..., None, :] >= reference[..., None]).sum(-1)


def p_values(statistics: Tensor, reference: Tensor, among: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """p-values (k) of statistics (3 F k), and the field and quantity (in `QUANTITIES`) of the first's best rank.

    Args:
        reference: the statistics of the references (3 F R).
        among: their ranks in it.

    Example:
        >>> reference = torch.tensor([[[0.9, 0.5, 0.1]], [[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]]])
        >>> statistics = torch.tensor([[[0.95, 0.4]], [[4.0, 4.0]], [[0.0, 4.0]]])
        >>> p_values(statistics, reference, ranks_among(reference))
        (tensor([0.2500, 1.0000], dtype=torch.float64), (0, 1))
    """
    count = reference.shape[-1]
    own = _where_near(1 + (reference[..., None, :] >= statistics[..., None]).sum(-1), count)  # (2 F k)
    others = _where_near(among[..., None, :] + (statistics[..., None] >= reference[..., None, :]), count)  # (2 F k R)
    rank, ranks = _best(own), _best(others)
    name, field = divmod(int(own[..., 0].argmin()), own.shape[1])
    return (1 + (ranks <= rank[:, None]).sum(1)).double() / (1 + count), (field, 1 + name)


def _where_near(ranks: Tensor, references: int) -> Tensor:
    """Ranks (2 F ...) by standing and excess, of (3 F ...): the last one in a field whose cosine's rank is too low."""
    return torch.where(ranks[0] <= NEAR * (1 + references), ranks[1:], references + 2)


def _best(ranks: Tensor) -> Tensor:
    """The best over the first two axes; several times as fast as ``amin`` over them."""
    return reduce(torch.minimum, ranks.flatten(0, 1).unbind())


def benjamini_hochberg(p: Tensor, rate: float) -> float:
    """The largest p-value that is selected: the greatest ``p_(k) <= rate k / Q``; -1 if there is none.

    Benjamini and Hochberg, JRSS B 1995.

    Example:
        >>> round(benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03]), 0.05), 4)
        0.03
    """
    ordered = p.sort().values
    line = rate * torch.arange(1, len(p) + 1, dtype=torch.float64) / len(p)
    passed = ordered <= line * (1 + 1e-9)  # p-values on the line pass despite rounding
    return float(ordered[passed].max()) if passed.any() else -1.0


def fewest(queries: int, references: int, rate: float) -> int:
    """The smallest number of queries that can be selected: where `Decision.floor` meets Benjamini-Hochberg's line."""
    return math.ceil(queries / (rate * (1 + references)) - 1e-9)
