"""Calibration: whether any training row stands out for a query, by what reference queries score.

For each training row i the reference queries r give a background: mean ``m_i``, deviation ``d_i`` and the highest of
its scores ``s_i(r)``. A row that scores high for everybody says nothing of q, and plain best scores have next to no
power (every clean query has some near row). So two statistics of a query's hits hold each row against its background:

    excess    sum over hits of max(0, s_i(q) - max_r s_i(r)) / d_i    many that stand out a little, few that do far
    standing  mean of the ten highest (s_i(q) - m_i) / d_i            bears references that are culprits themselves

For references they are the same, each row's background then being that of the others. A query's rank is the better of
its two ranks among itself and the R references, and so is each reference's; with these

    p(q) = (1 + #{r: rank(r) <= rank(q)}) / (1 + R)

which treats q and the references alike, so it is a valid p-value where q is exchangeable with them (Bates, Candes, Lei,
Romano and Sesia, Annals of Statistics 2023: conformal p-values, whose dependence Benjamini-Hochberg bears). No p-value
is below 1 / (1 + R). Queries are selected by Benjamini-Hochberg at a stated rate, and rows within them at the level
that selection leaves (Benjamini and Bogomolov, JRSS B 2014), step by step: a hit's p-value is that of the query without
the hits that stand out further (by excess, then by standing). So the best hit has its query's p-value, and a row is
flagged as long as it and what is left after it still stand out; the last few of several culprits can be missed.

References drawn from the training rows are compared with all rows but those that `rept.overlap` finds to speak of the
same thing, themselves and their near-duplicates first: each is a query that no compared row touches, and an ordinary
query, which some row does touch, may stand out among them. Clean queries of one's own (`rept.references`) beside them
mend that: they too have rows that taught what they ask, so what stands out for a query does so more than that. Where a
poisoned row is drawn and shares too few words with its like, its statistic and its like's background are high, and
power is lost. A behaviour that is told as all clean rows are (a false fact among facts) stands out no more than they.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.topk import Hits, TopK

DEPTH = 10  # standings that make a query's second statistic
MOMENTS = 5  # see BackgroundShare
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
        compared = score.masked_fill(out, -torch.inf)
        highest = torch.nn.functional.pad(compared, (0, 1), value=-torch.inf).topk(2, dim=1).values.double()
        self._row.append(row)
        self._moments.append(torch.cat([torch.stack([count, mean, square], dim=1), highest], dim=1))
        self._top.add(row, compared)

    def share(self) -> BackgroundShare:
        """What one process knows, to be gathered."""
        row = torch.cat(self._row) if self._row else torch.empty(0, dtype=torch.int64)
        moments = torch.cat(self._moments) if self._moments else torch.empty(0, MOMENTS, dtype=torch.float64)
        return BackgroundShare(row, moments, self._top.hits())


@dataclass(frozen=True)
class BackgroundShare:
    """One process's rows, their moments (n 5), and the best hits of the references among them.

    Moments: the number of references that the row is compared with; of their scores, the mean, the sum of squared
    differences from it, the highest and the second highest.
    """

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
    moments = torch.zeros(int(rows.max()) + 1, MOMENTS, dtype=torch.float64)
    moments[rows] = torch.cat([share.moments for share in shares])
    hits = top.hits()
    known = statistics(*held_against(moments, hits, own=True))[0][(hits.score > -torch.inf).any(1), 0]
    found, order = statistics(*held_against(moments, best))
    among = (known[None] >= known[:, None]).sum(1)  # (R 2)
    stepwise = torch.stack([p_values(one, known, among) for one in found]).cummax(dim=1).values
    hit = torch.empty_like(stepwise).scatter_(1, order, stepwise)
    level = benjamini_hochberg(stepwise[:, 0], rate)
    return Decision(stepwise[:, 0], hit, hit <= level, len(known))


def held_against(moments: Tensor, hits: Hits, own: bool = False) -> tuple[Tensor, Tensor]:
    """Excess and standing (Q k) of hits; 0 where all references score a row the same, or the hit has no score.

    Args:
        moments: of every row (N 5), see `BackgroundShare`.
        own: the hits are the references' own: each is taken out of its row's background first.
    """
    count, mean, square, highest, second = moments[hits.row].unbind(-1)
    known = hits.score > -torch.inf
    score = torch.where(known, hits.score.double(), mean)
    difference = score - mean
    if own:  # with n scores and without the one that differs by x, the mean moves by -x / (n - 1)
        square = (square - difference.square() * count / (count - 1).clamp(min=1)).clamp(min=0)
        difference = difference * count / (count - 1).clamp(min=1)
        highest = torch.where(score >= highest, second, highest)
        count = count - 1
    deviation = (square / count.clamp(min=1)).sqrt()
    known &= (deviation > 1e-12) & (count > 0)
    excess = torch.where(known, (score - highest) / deviation, 0).clamp(min=0)
    return excess, torch.where(known, difference / deviation, 0)


def statistics(excess: Tensor, standing: Tensor) -> tuple[Tensor, Tensor]:
    """Both statistics (Q k 2) of each hit and those that stand out less, furthest first; and the hits' order (Q k)."""
    by_standing = standing.argsort(dim=1, descending=True, stable=True)
    by_excess = excess.gather(1, by_standing).argsort(dim=1, descending=True, stable=True)
    order = by_standing.gather(1, by_excess)
    excess, standing = excess.gather(1, order), standing.gather(1, order)
    total = excess.flip(1).cumsum(1).flip(1)
    k = standing.shape[1]
    highest = [standing[:, i:].topk(min(DEPTH, k - i), dim=1).values.mean(1) for i in range(k)]
    return torch.stack([total, torch.stack(highest, dim=1)], dim=-1), order


def p_values(found: Tensor, known: Tensor, among: Tensor) -> Tensor:
    """p-values (k) of pairs of statistics (k 2), by those of references (R 2) and their ranks among themselves (R 2).

    Ranks count from 1, the highest; equal ones share the lower rank.

    Example:
        >>> known = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
        >>> among = (known[None] >= known[:, None]).sum(1)
        >>> p_values(torch.tensor([[9.0, 0.0], [9.0, 9.0], [0.0, 0.0]]), known, among)
        tensor([0.5000, 0.2500, 1.0000], dtype=torch.float64)
    """
    rank = 1 + (known >= found[:, None]).sum(1).amin(-1)  # (k)
    others = (among + (found[:, None] >= known)).amin(-1)  # (k R)
    return (1 + (others <= rank[:, None]).sum(1)).double() / (1 + len(known))


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
