"""Calibration: whether any training row stands out for a query, by how reference queries resemble the rows.

A row that resembles everything says nothing of q, and every ordinary query has some near row. So each row's cosine is
held against its cosines with the references (`rept.resemblance`: *standing* and *excess*). But a query unlike all
others stands out among rows that are not near it at all; so its rows must be near, too. In each field f

    rank_f(q) = the better rank, among q and the R references, of the mean of the five highest standings and of that of
                the five highest excesses; the last where that of the five highest cosines is not in the highest quarter

and a query's rank is the best of its fields': what was planted shows in one of them. With the same of each reference,
whose background is that of the others,

    p(q) = (1 + #{r: rank(r) <= rank(q)}) / (1 + R)

which treats q and the references alike, so it is a valid p-value where q is exchangeable with them (Bates, Candes, Lei,
Romano and Sesia, Annals of Statistics 2023: conformal p-values, whose dependence Benjamini-Hochberg bears). No p-value
is below 1 / (1 + R), and with F fields hardly any below F / (1 + R), for some reference is the first in each.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rept.resemblance import DEPTH, LOOKED_AT, Highest, Share
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


def decide(shares: Sequence[Share], best: Hits, rate: float) -> Decision:
    """Whether any of the ``best`` hits stands out, by what all processes gathered with `Resemblance`.

    References with no row left to be compared with are not counted.
    """
    found = [[Highest.merged([share[field][name] for share in shares]) for field in shares[0]] for name in LOOKED_AT]
    known = torch.stack([torch.stack([_mean(one.reference.score) for one in fields]) for fields in found])  # (3 F R)
    known = known[..., (known > -torch.inf).all(0).all(0)]
    pool = (known[..., None, :] >= known[..., None]).sum(-1)  # (3 F R): ranks among the references
    hit = torch.stack([p_values(_steps(found, query, main), known, pool) for query, main in enumerate(best.row)])
    hit = hit.cummax(dim=1).values
    level = benjamini_hochberg(hit[:, 0], rate)
    return Decision(hit[:, 0], hit, hit <= level, known.shape[-1])


def _mean(score: Tensor) -> Tensor:
    """Means (R) of the `DEPTH` highest of (R m), descending; -inf where no row was compared."""
    highest = score[:, :DEPTH]
    there = highest > -torch.inf
    return torch.where(there.any(1), highest.where(there, 0).sum(1) / there.sum(1), -torch.inf)


def _steps(found: Sequence[Sequence[Highest]], query: int, main: Tensor) -> Tensor:
    """(3 F k) what a query's rows come to: all of them, and without the hits before each of ``main`` (k)."""
    return torch.stack(
        [
            torch.stack([stepwise(one.query.row[query], one.query.score[query], main) for one in fields])
            for fields in found
        ]
    )


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
    """p-values (k) of what is looked at in each field (3 F k), by that of references (3 F R) and their ranks in it.

    Ranks count from 1, the highest; equal ones share the lower rank.

    Example:
        >>> known = torch.tensor([[[0.9, 0.5, 0.1]], [[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]]])
        >>> pool = (known[..., None, :] >= known[..., None]).sum(-1)
        >>> p_values(torch.tensor([[[0.95, 0.4]], [[4.0, 4.0]], [[0.0, 4.0]]]), known, pool)
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    own = 1 + (known[..., None, :] >= found[..., None]).sum(-1)  # (3 F k)
    others = pool[..., None, :] + (found[..., None] >= known[..., None, :])  # (3 F k R)
    count = known.shape[-1]
    rank, ranks = _best(own, count), _best(others, count)
    return (1 + (ranks <= rank[:, None]).sum(1)).double() / (1 + count)


def _best(ranks: Tensor, references: int) -> Tensor:
    """The best of all fields, of standing and excess; those of a field (3 F ...) are the last where it is not near."""
    near, standing, excess = ranks
    of_field = torch.where(near <= NEAR * (1 + references), torch.minimum(standing, excess), references + 2)
    return reduce(torch.minimum, of_field)  # several times as fast as amin over the first axis


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
