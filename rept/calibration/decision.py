"""Calibration: whether any training row stands out for a query, by how reference queries resemble the rows.

A row that resembles everything says nothing of q, and every ordinary query has some near row. So each row's cosine is
held against its cosines with the references (`rept.calibration.statistics`: *standing* and *excess*). But a query unlike all
others stands out among rows that are not near it at all; so its rows must be near, too. In each field f

    rank_f(q) = the better rank, among q and the R references, of the mean of the five highest standings and of that of
                the five highest excesses; the last where that of the five highest cosines is not in the highest quarter

and a query's rank is the best of its fields': what was planted shows in one of them. With the same of each reference,
whose background is that of the others,

    p(q) = (1 + #{r: rank(r) <= rank(q)}) / (1 + R)

a conformal p-value (Bates, Candes, Lei, Romano and Sesia, Annals of Statistics 2023): valid where q is exchangeable
with the references, but for the one of them that a reference's background lacks. That Benjamini-Hochberg bears the
dependence is proven for scores that do not look at the references; here it is held against simulations. No p-value is
below 1 / (1 + R), and few are below 2 F / (1 + R) with F fields: a query that is first in one of 2 F things shares that
with the references that are first in the others.

Queries are selected by Benjamini-Hochberg at a stated rate, and rows within them at the level that selection leaves
(Benjamini and Bogomolov, JRSS B 2014), step by step: a hit's p-value is that of the query without the hits that stand
out further, in the field in which the query does. A row is flagged as long as it and what is left after it still stand
out; the last few of several culprits can be missed.

References drawn from the training rows are compared with all rows but those that `rept.data.word_overlap` finds to speak of the
same thing, themselves and their near-duplicates first. Among fewer rows the highest are lower, so where a share of the
rows is left out, as great a share of the five highest is (four of them where it is 11 %). Each is a query that no
compared row touches, and an ordinary query, which some row does touch, may stand out among them. Clean queries of one's
own (`rept.calibration.references`) beside them mend that: they too have rows that taught what they ask, so what stands out for a
query does so more than that. Where a poisoned row is drawn and shares too few words with its like, its statistic is
high, and power is lost. A behaviour that is told as all clean rows are (a false fact among facts) stands out no more
than they.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rept.calibration.statistics import DEPTH, LOOKED_AT, Highest, Share
from rept.ranking.topk import Hits

NEAR = 0.25  # share of the references and the query among whose highest cosines those of what stands out must be
Found = Sequence[Sequence[Highest]]  # by what is looked at, then by field


@dataclass(frozen=True)
class Decision:
    """What stands out. ``query`` (Q) and ``hit`` (Q k) are p-values."""

    query: Tensor
    hit: Tensor
    flagged: Tensor  # (Q k) bool
    references: int
    left_out: float  # share of the rows that a reference is not compared with, on average

    @property
    def floor(self) -> float:
        """The smallest p-value that so many references allow."""
        return 1 / (1 + self.references)

    def of_hit(self, query: int, position: int) -> dict[str, float | bool]:
        """A hit's fields in results.jsonl."""
        p_value = float(f"{self.hit[query, position]:.7g}")
        return {"p_value": p_value, "flagged": bool(self.flagged[query, position])}


def decide(shares: Sequence[Share], best: Hits, rate: float, top_k: int) -> Decision:
    """Whether any of the ``best`` hits, ``top_k`` at most, stands out, by what all processes gathered.

    References with no row left to be compared with are not counted.
    """
    found = [
        [Highest.merged([share.highest[field][name] for share in shares], top_k) for field in shares[0].highest]
        for name in LOOKED_AT
    ]
    rows, compared = sum(share.rows for share in shares), torch.stack([share.compared for share in shares]).sum(0)
    depth = (DEPTH * compared / max(1, rows)).floor().clamp(min=1)
    known = torch.stack([torch.stack([_mean(one.reference.score, depth) for one in fields]) for fields in found])
    known = known[..., compared > 0]  # (3 F R)
    among = ranks_among(known)
    decided = [_of_query(found, i, main, known, among) for i, main in enumerate(best.row)]
    query, hit = (torch.stack(p) for p in zip(*decided, strict=True))
    level = benjamini_hochberg(query, rate)
    return Decision(query, hit, hit <= level, known.shape[-1], 1 - float(compared.sum()) / max(1, rows * len(compared)))


def _mean(score: Tensor, depth: Tensor) -> Tensor:
    """Means (R) of the highest of (R m), descending, as many as ``depth`` (R) says; -inf where there is none."""
    taken = (torch.arange(score.shape[1]) < depth[:, None]) & (score > -torch.inf)
    return torch.where(taken.any(1), score.where(taken, 0).sum(1) / taken.sum(1), -torch.inf)


def _of_query(found: Found, query: int, main: Tensor, known: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The p-values of a query and (k) of its hits ``main`` (k): each that of the query without those further out.

    Further out in that field, and by that of standing and excess, in which the query has its best rank. A hit that is
    not among the rows kept there stands out for nothing.
    """
    _, (field, name) = p_values(_without(found, query, main[:0]), known, among)
    same = main[:, None] == found[name][field].query.row[query]
    place = torch.where(same.any(1), same.int().argmax(1), same.shape[1])
    order = place.argsort(stable=True)
    p, _ = p_values(_without(found, query, main[order[:-1]]), known, among)  # each without those before it
    of_hits = torch.where(place[order] < same.shape[1], p.cummax(0).values, 1)
    return p[0], torch.empty_like(of_hits).scatter_(0, order, of_hits)


def _without(found: Found, query: int, removed: Tensor) -> Tensor:
    """(3 F 1+k) what a query's rows come to: all of them, and without the first 1, 2, ... of ``removed`` (k)."""
    return torch.stack(
        [
            torch.stack([stepwise(one.query.row[query], one.query.score[query], removed) for one in fields])
            for fields in found
        ]
    )


def stepwise(row: Tensor, score: Tensor, removed: Tensor) -> Tensor:
    """Means (1+k) of the `DEPTH` highest scores (m, descending) of rows (m), without 0, 1, ... of ``removed`` (k).

    -inf where none is left.
    """
    step = torch.arange(len(removed) + 1)
    place = torch.full_like(row, len(step))
    if len(removed):
        same = row[:, None] == removed
        place = torch.where(same.any(1), same.int().argmax(1), place)
    left = place >= step[:, None]  # (1+k m)
    taken = left & (left.cumsum(1) <= DEPTH)
    mean = (score * taken).sum(1) / taken.sum(1)
    return torch.where(taken.any(1), mean, -torch.inf)


def ranks_among(known: Tensor) -> Tensor:
    """Ranks (... R) of references among one another, from 1, the highest; equal ones share the lower rank."""
    return (known[..., None, :] >= known[..., None]).sum(-1)


def p_values(found: Tensor, known: Tensor, among: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """p-values (k) of what is looked at in each field (3 F k), and the field, and name in `LOOKED_AT`, of the first.

    Args:
        known: the same of references (3 F R).
        among: their ranks in it.

    Example:
        >>> known = torch.tensor([[[0.9, 0.5, 0.1]], [[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]]])
        >>> p_values(torch.tensor([[[0.95, 0.4]], [[4.0, 4.0]], [[0.0, 4.0]]]), known, ranks_among(known))
        (tensor([0.2500, 1.0000], dtype=torch.float64), (0, 1))
    """
    count = known.shape[-1]
    own = _where_near(1 + (known[..., None, :] >= found[..., None]).sum(-1), count)  # (2 F k)
    others = _where_near(among[..., None, :] + (found[..., None] >= known[..., None, :]), count)  # (2 F k R)
    rank, ranks = _best(own), _best(others)
    name, field = divmod(int(own[..., 0].argmin()), own.shape[1])
    return (1 + (ranks <= rank[:, None]).sum(1)).double() / (1 + count), (field, 1 + name)


def _where_near(ranks: Tensor, references: int) -> Tensor:
    """Ranks (2 F ...) of standings and excesses, of (3 F ...): the last in a field where the cosines' is too low."""
    return torch.where(ranks[0] <= NEAR * (1 + references), ranks[1:], references + 2)


def _best(ranks: Tensor) -> Tensor:
    """The best over the first two axes; several times as fast as ``amin`` over them."""
    return reduce(torch.minimum, ranks.flatten(0, 1))


def benjamini_hochberg(p: Tensor, rate: float) -> float:
    """The largest p-value that is selected: the greatest ``p_(k) <= rate k / Q``; -1 where there is none.

    Benjamini and Hochberg, JRSS B 1995.

    Example:
        >>> round(benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03]), 0.05), 4)
        0.03
    """
    ordered = p.sort().values
    line = rate * torch.arange(1, len(p) + 1, dtype=torch.float64) / len(p)
    passed = ordered <= line * (1 + 1e-9)  # p-values on the line pass, whatever rounding made of them
    return float(ordered[passed].max()) if passed.any() else -1.0


def fewest(queries: int, references: int, rate: float) -> int:
    """So many queries must stand out together before any can: the floor meets Benjamini-Hochberg's line there."""
    return math.ceil(queries / (rate * (1 + references)) - 1e-9)
