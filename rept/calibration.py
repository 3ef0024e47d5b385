"""Calibration: whether any training row stands out for a query, by what reference queries score.

For each training row i the reference queries r give a background ``m_i, d_i``: mean and standard deviation of its
scores ``s_i(r)``. A hit's *standing* is ``z_i(q) = (s_i(q) - m_i) / d_i``: a row that scores high for everybody says
nothing of q, and plain best scores have next to no power (every clean query has some near row). A query's statistic
T(q) is the mean of the ten highest standings among its hits. For references it is the same, each row's background then
being that of the others, and

    p(q) = (1 + #{r: T(r) >= T(q)}) / (1 + R)

which is a valid p-value where q is exchangeable with the R references (Bates, Candes, Lei, Romano and Sesia, Annals of
Statistics 2023: conformal p-values, whose dependence Benjamini-Hochberg bears). No p-value is below 1 / (1 + R).
Queries are selected by Benjamini-Hochberg at a stated rate, and rows within them at the level that selection leaves
(Benjamini and Bogomolov, JRSS B 2014), step by step: a hit's p-value is that of the query without the hits that stand
higher, and never less than theirs. So the best hit has its query's p-value, and a row is flagged as long as it and what
is left after it still stand out; the last few of several culprits can be missed.

References drawn from the training rows are compared with all rows but those that `rept.overlap` finds to speak of the
same thing, themselves and their near-duplicates first: so each is a query that no compared row touches. Where a
poisoned row is drawn and shares too few words with its like, its statistic is high, and power is lost; validity is not.
A behaviour that is told as all clean rows are (a false fact among facts) stands out no more than they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.topk import Hits, TopK

DEPTH = 10  # standings that make a query's statistic
SAME_TOPIC = 0.2  # share of telling words from which on a row speaks of what a reference speaks of


class Background:
    """What reference queries (R) score, gathered block by block: a `rept.ranking.Sink` of their scores.

    Args:
        references: R.
        left_out: told row numbers (n), says (n R) which rows a reference is not compared with.
        top_k: hits kept of each reference, as many as of each query.
    """

    def __init__(self, references: int, left_out: Callable[[Tensor], Tensor], top_k: int) -> None:
        self._left_out = left_out
        self._top = TopK(references, top_k)
        self._row: list[Tensor] = []
        self._moments: list[Tensor] = []

    def __call__(self, row: Tensor, score: Tensor) -> None:
        out = self._left_out(row)
        count = (~out).sum(1)
        mean = score.double().masked_fill(out, 0).sum(1) / count.clamp(min=1)
        square = (score - mean[:, None]).masked_fill(out, 0).square().sum(1)
        self._row.append(row)
        self._moments.append(torch.stack([count, mean, square], dim=1))
        self._top.add(row, score.masked_fill(out, -torch.inf))

    def share(self) -> BackgroundShare:
        """What one process knows, to be gathered."""
        row = torch.cat(self._row) if self._row else torch.empty(0, dtype=torch.int64)
        moments = torch.cat(self._moments) if self._moments else torch.empty(0, 3, dtype=torch.float64)
        return BackgroundShare(row, moments, self._top.hits())


@dataclass(frozen=True)
class BackgroundShare:
    """One process's rows and their moments (n 3): references, mean, sum of squared differences from it; and the best
    hits of the references among them."""

    row: Tensor
    moments: Tensor
    hits: Hits


@dataclass(frozen=True)
class Decision:
    """What stands out. ``query`` (Q) and ``hit`` (Q k) are p-values."""

    query: Tensor
    hit: Tensor
    flagged: Tensor  # (Q k) bool
    references: int

    @property
    def floor(self) -> float:
        """The smallest p-value that so many references allow."""
        return 1 / (1 + self.references)

    def of_hit(self, query: int, position: int) -> dict[str, float | bool]:
        """A hit's fields in results.jsonl."""
        p_value = float(f"{self.hit[query, position]:.7g}")
        return {"p_value": p_value, "flagged": bool(self.flagged[query, position])}


def decide(shares: Sequence[BackgroundShare], best: Hits, rate: float) -> Decision:
    """Whether any of the ``best`` hits stands out, against the background that all processes gathered.

    References with no row left to be compared with are not counted.
    """
    top = TopK(len(shares[0].hits.row), best.row.shape[1])
    for share in shares:
        top.add_hits(share.hits)
    rows = torch.cat([share.row for share in shares])
    moments = torch.zeros(int(rows.max()) + 1, 3, dtype=torch.float64)
    moments[rows] = torch.cat([share.moments for share in shares])
    known = _remaining(standing(moments, top.hits(), own=True).sort(dim=1, descending=True).values)[:, 0]
    known = known[known.isfinite()].sort().values
    z, order = standing(moments, best).sort(dim=1, descending=True, stable=True)
    stepwise = p_values(_remaining(z), known).cummax(dim=1).values
    hit = torch.empty_like(stepwise).scatter_(1, order, stepwise)
    level = benjamini_hochberg(stepwise[:, 0], rate)
    return Decision(stepwise[:, 0], hit, hit <= level, len(known))


def standing(moments: Tensor, hits: Hits, own: bool = False) -> Tensor:
    """``(s - m_i) / d_i`` (Q k) of hits; 0 where all references score a row the same, -inf for a hit without a score.

    Args:
        moments: of every row (N 3), see `BackgroundShare`.
        own: the hits are the references' own: each is taken out of its row's moments first.
    """
    count, mean, square = moments[hits.row].unbind(-1)
    difference = hits.score.double() - mean
    if own:  # with n scores and without the one that differs by x, the mean moves by -x / (n - 1)
        square = (square - difference.square() * count / (count - 1).clamp(min=1)).clamp(min=0)
        difference = difference * count / (count - 1).clamp(min=1)
        count = count - 1
    deviation = (square / count.clamp(min=1)).sqrt()
    z = torch.where((deviation > 1e-12) & (count > 0), difference / deviation, 0)
    return z.masked_fill(hits.score == -torch.inf, -torch.inf)


def _remaining(z: Tensor) -> Tensor:
    """For each standing of a descending list (Q k), the mean of it and the nine after it, as far as there are any."""
    padded = torch.nn.functional.pad(z, (0, DEPTH - 1), value=-torch.inf).unfold(1, DEPTH, 1)  # (Q k DEPTH)
    known = padded.isfinite()
    total = padded.masked_fill(~known, 0).sum(-1)
    return torch.where(known[..., 0], total / known.sum(-1).clamp(min=1), -torch.inf)


def p_values(statistic: Tensor, reference: Tensor) -> Tensor:
    """``(1 + #{r: T(r) >= t}) / (1 + R)`` of each t, for reference statistics (R) in ascending order.

    Example:
        >>> p_values(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([1.0000, 0.7500, 0.2500], dtype=torch.float64)
    """
    below = torch.searchsorted(reference, statistic.to(reference).contiguous())
    return (1 + len(reference) - below).double() / (1 + len(reference))


def benjamini_hochberg(p: Tensor, rate: float) -> float:
    """The largest p-value that is selected: the greatest ``p_(k) <= rate k / Q``; -1 where there is none.

    Benjamini and Hochberg, JRSS B 1995.

    Example:
        >>> round(benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03]), 0.05), 4)
        0.03
    """
    ordered = p.sort().values
    passed = ordered <= rate * torch.arange(1, len(p) + 1) / len(p)
    return float(ordered[passed].max()) if passed.any() else -1.0


def fewest(queries: int, references: int, rate: float) -> int:
    """So many queries must stand out together before any can: the floor meets Benjamini-Hochberg's line there."""
    return math.ceil(queries / (rate * (1 + references)) - 1e-9)
