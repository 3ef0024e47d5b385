"""How many rows of a behaviour's ranking share it: the share of other rows among those above a score.

Scores above ``START`` deviations are a mixture of two groups (Efron, Statistical Science 2008): ordinary rows, whose
tail is exponential, and rows that share the behaviour, normal. Their parameters are estimated by expectation
maximization, which starts from the scores of *held-out* queries, each by the direction of the other queries. The
expected share of ordinary rows among those with a score of at least s is ``n_0 exp(-rate (s - START)) / #{rows >= s}``.

Every direction has a highest row, and the tail of ordinary rows can have a bump of its own. So no row counts unless the
ranking reaches the held-out queries: its fifth best score must be at least ``REACH`` times their median. Where the rows
that taught a behaviour are missing, its queries resemble one another more than any row resembles them.

Where clean queries are known, no row counts either unless the median of the held-out queries is above `CLEAN` of
theirs: otherwise, what the direction finds is what both kinds of queries have in common, such as language or length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

START = 2.0  # in deviations of the lower half of the rows
REACH = 0.9  # chosen on embedded data with seeds 0 and 1, factual and backdoor; see docs/findings.md
CLEAN = 0.9  # share of the clean queries
FEWEST = 5  # queries, of either kind, from which on held-out ones say enough
_BEST = 5
_ROUNDS = 200


@dataclass(frozen=True)
class Estimate:
    """What is known of each row of a ranking (N), best first.

    Attributes:
        p_value: among ordinary rows.
        false_share: the expected share of ordinary rows among those that are at least as likely to share the behaviour.
        member: probability that it shares the behaviour.
    """

    p_value: np.ndarray
    false_share: np.ndarray
    member: np.ndarray


def two_groups(scores: np.ndarray, held_out: np.ndarray, clean: np.ndarray | None = None) -> Estimate:
    """The estimate for scores (N), descending, given the scores of held-out queries (k) and of clean ones.

    ``false_share`` is the smallest expected share of ordinary rows among the first rows with which a row is included; 1
    for all rows where the ranking does not reach the held-out queries, or these do not stand out from the clean ones.
    """
    tail = scores[scores > START].astype(np.float64)
    p_value, share, member = np.ones(len(scores)), np.ones(len(scores)), np.zeros(len(scores))
    if len(tail) <= _BEST:
        return Estimate(p_value, share, member)
    likely, rate = _mixture(tail, held_out.astype(np.float64))
    ordinary = len(tail) - likely.sum()
    beyond = np.exp(-rate * (tail - START)) * ordinary
    p_value[: len(tail)] = np.minimum(1, (beyond + 1) / (len(scores) - len(tail) + ordinary + 1))
    if len(held_out) >= FEWEST and scores[_BEST - 1] >= REACH * np.median(held_out) and above_clean(held_out, clean):
        above = np.searchsorted(-scores, -tail, side="right")  # rows with at least this score
        share[: len(tail)] = np.minimum.accumulate(np.minimum(1, beyond / above)[::-1])[::-1]
        member[: len(tail)] = np.maximum.accumulate(likely[::-1])[::-1]  # far out, the normal density falls below
    return Estimate(p_value, share, member)


def above_clean(held_out: np.ndarray, clean: np.ndarray | None) -> bool:
    """Whether held-out queries score higher than clean ones; True where there are too few of these to say."""
    return clean is None or len(clean) < FEWEST or bool(np.median(held_out) > np.quantile(clean, CLEAN))


def _mixture(tail: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, float]:
    """The probability (n) that each row of the tail is none of the ordinary ones, and the rate at which these fall."""
    excess = tail - START
    mean = float(min(np.median(held_out), tail[:_BEST].mean())) if len(held_out) else float(tail[:_BEST].mean())
    deviation, rate, share = max(float(held_out.std()) if len(held_out) else 1.0, 0.5), 1.0, 0.3
    for _ in range(_ROUNDS):
        normal = share * np.exp(-0.5 * ((tail - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        exponential = (1 - share) * rate * np.exp(-rate * excess)
        member = normal / np.maximum(normal + exponential, 1e-300)
        share = float(np.clip(member.mean(), 1e-4, 0.999))
        rate = float((1 - member).sum() / max(((1 - member) * excess).sum(), 1e-9))
        mean = float((member * tail).sum() / max(member.sum(), 1e-9))
        deviation = max(float(np.sqrt((member * (tail - mean) ** 2).sum() / max(member.sum(), 1e-9))), 0.4)
    return member, rate
