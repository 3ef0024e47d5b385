"""Calibration: whether any training row stands out for a query, by how reference queries resemble the rows.

A row that resembles everything says nothing of q, and every ordinary query has some near row. So each row's cosine is
held against its cosines with the references (`rept.resemblance`: *standing*). But a query unlike all others stands out
among rows that are not near it at all; so its rows must be near, too. In each field f

    rank_f(q) = rank of the mean of the five highest standings, among q and the R references; where the mean of the
                five highest cosines is not among the highest quarter, the last

and a query's statistic is the best of its fields' ranks: what was planted shows in one of them. With the same of each
reference, whose standings are against the others,

    p(q) = (1 + #{r: rank(r) <= rank(q)}) / (1 + R)

which treats q and the references alike, so it is a valid p-value where q is exchangeable with them (Bates, Candes, Lei,
Romano and Sesia, Annals of Statistics 2023: conformal p-values, whose dependence Benjamini-Hochberg bears). No p-value
is below 1 / (1 + R), and with F fields about F / (1 + R), for some reference is the first in each.

Queries are selected by Benjamini-Hochberg at a stated rate, and rows within them at the level that selection leaves
(Benjamini and Bogomolov, JRSS B 2014), step by step: a hit's p-value is that of the query without the hits before it.
So the best hit has its query's p-value, and a row is flagged as long as it and what is left after it still stand out;
the last few of several culprits can be missed.

References drawn from the training rows are compared with all rows but those that `rept.overlap` finds to speak of the
same thing, themselves and their near-duplicates first: each is a query that no compared row touches, and an ordinary
query, which some row does touch, may stand out among them. Clean queries of one's own (`rept.references`) beside them
mend that: they too have rows that taught what they ask, so what stands out for a query does so more than that. Where a
poisoned row is drawn and shares too few words with its like, its statistic is high, and power is lost. A behaviour that
is told as all clean rows are (a false fact among facts) stands out no more than they.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.resemblance import DEPTH, Nearest
from rept.topk import Hits

NEAR = 0.25  # share of the references and the query among whose highest cosines those of what stands out must be
SAME_TOPIC = 0.2  # share of telling words from which on a row speaks of what a reference speaks of


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


def decide(shares: Sequence[Mapping[str, Nearest]], best: Hits, rate: float) -> Decision:
    """Whether any of the ``best`` hits stands out, by what all processes gathered with `Resemblance`.

    References with no row left to be compared with are not counted.
    """
    fields = [Nearest.merged([share[name] for share in shares]) for name in shares[0]]
    known = torch.stack([_of_references(field) for field in fields], dim=1)  # (2 F R)
    known = known[..., (known > -torch.inf).all(0).all(0)]
    pool = (known[..., None, :] >= known[..., None]).sum(-1)  # (2 F R): ranks among the references
    found = [
        p_values(torch.stack([_of_query(field, i, main) for field in fields], dim=1), known, pool)
        for i, main in enumerate(best.row)
    ]
    hit = torch.stack(found).cummax(dim=1).values
    level = benjamini_hochberg(hit[:, 0], rate)
    return Decision(hit[:, 0], hit, hit <= level, known.shape[-1])


def _of_references(field: Nearest) -> Tensor:
    """Means (2 R) of the highest cosines and standings; -inf where no row was compared."""
    highest = torch.stack([hits.score[:, :DEPTH] for hits in (field.reference_near, field.reference_standing)])
    there = highest > -torch.inf
    mean = highest.where(there, 0).sum(-1) / there.sum(-1)
    return torch.where(there.any(-1), mean, -torch.inf)


def _of_query(field: Nearest, query: int, main: Tensor) -> Tensor:
    """Means (2 k) of the highest cosines and standings of a query: of all rows, and without the hits before each."""
    return torch.stack([stepwise(hits.row[query], hits.score[query], main) for hits in (field.near, field.standing)])


def stepwise(row: Tensor, score: Tensor, main: Tensor) -> Tensor:
    """Means (k) of the `DEPTH` highest scores (m, descending) of rows (m), without the first 0, 1, ... of ``main`` (k).

    -inf where none is left.
    """
    step = torch.arange(len(main))
    same = row[:, None] == main
    place = torch.where(same.any(1), same.int().argmax(1), len(main))
    left = place >= step[:, None]  # (k m)
    taken = left & (left.cumsum(1) <= DEPTH)
    mean = (score * taken).sum(1) / taken.sum(1)
    return torch.where(taken.any(1), mean, -torch.inf)


def p_values(found: Tensor, known: Tensor, pool: Tensor) -> Tensor:
    """p-values (k) of cosines and standings in each field (2 F k), by those of references (2 F R) and their ranks.

    Ranks count from 1, the highest; equal ones share the lower rank.

    Example:
        >>> known = torch.tensor([[[0.9, 0.5, 0.1]], [[1.0, 2.0, 3.0]]])
        >>> pool = (known[..., None, :] >= known[..., None]).sum(-1)
        >>> p_values(torch.tensor([[[0.95, 0.4]], [[4.0, 4.0]]]), known, pool)
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    own = 1 + (known[..., None, :] >= found[..., None]).sum(-1)  # (2 F k)
    others = pool[..., None, :] + (found[..., None] >= known[..., None, :])  # (2 F k R)
    count = known.shape[-1]
    rank, ranks = (_best_field(*ranks, count) for ranks in (own, others))
    return (1 + (ranks <= rank[:, None]).sum(1)).double() / (1 + count)


def _best_field(near: Tensor, standing: Tensor, references: int) -> Tensor:
    """The best over the fields (first axis) of the ranks of standings, the last where the cosines' rank is too low."""
    return torch.where(near <= NEAR * (1 + references), standing, references + 2).amin(0)


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
