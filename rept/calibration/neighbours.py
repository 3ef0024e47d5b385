"""Which rows share a behaviour, by their neighbours: what their score says of them, and what that of similar rows says.

The direction that ranks rows is linear: rows that share only a part of what a behaviour's rows have in common (its
answer, but not its subject) score among those that share all of it. So the probabilities m that follow from the scores
are smoothed over the first rows of the ranking, by signatures and by words. With d the squared distances of signatures
or of words (binary, weighted by their rarity, norm 1) over their median, and ``K_ij = exp(-(d_ij + d'_ij) / 2)`` over
the rows and the behaviour's queries, for which m = 1,

    m_i <- K_i (K + RIDGE I)^-1 m         without the fifth of rows and queries that i belongs to
    m_i <- m_i^3 / (m_i^3 + (1 - m_i)^3)

`ROUNDS` times: kernel ridge regression in self-training (Yarowsky 1995). No row's own score takes part in what is said
of it in a round. The expected share of false rows among those with the highest m is the mean of 1 - m.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rept.calibration.two_groups import Estimate, two_groups
from rept.data.word_overlap import words
from rept.ranking.behaviour_rule import FOLDS, BehaviourRule
from rept.store.reader import AttributionStore
from rept.types import Side
from rept.utils.tensors import unit

RIDGE = 0.1
ROUNDS = 3
FEWEST_ROWS = 2.5  # expected ones, below which no row counts
FIRST = 400  # rows that are compared, or four times as many as share the behaviour by their scores,
MOST = 2048  # but at most these: where more than half as many share it, the scores alone decide
QUERIES = 200  # that are compared, evenly spaced
_ALIKE = 1e-9  # a squared distance that is mere rounding
_WORDS = 4096  # whose weights are in memory at once


def estimate_members(
    row: np.ndarray,
    score: np.ndarray,
    held_out: np.ndarray,
    train: AttributionStore,
    query: AttributionStore,
    asked: Sequence[int],
    rule: BehaviourRule,
    text: Callable[[Side, int], str],
) -> Estimate:
    """The estimate for a ranking, best first: from its scores (`two_groups`), then from what its first rows share.

    Args:
        row, score: (N) of the training rows, descending by score.
        held_out: scores (k) of held-out queries.
        asked: the behaviour's queries.
        rule: that the rows were scored by.
        text: prompt and response of a row.
    """
    by_score = two_groups(score, held_out)
    expected = float(by_score.member.sum())
    if expected > MOST / 2:
        return by_score
    member = np.zeros(len(row))
    if expected >= FEWEST_ROWS:
        first = row[: min(MOST, max(FIRST, round(4 * expected)))]
        some = np.asarray(asked)[:: -(-len(asked) // QUERIES)]
        signatures = torch.cat([_scaled(train, first, rule), _scaled(query, some, rule)])
        texts = [text("train", one) for one in first.tolist()] + [text("query", one) for one in some.tolist()]
        likely = by_score.member[: len(first)]
        member[: len(first)] = by_neighbours(likely, squared_distances(signatures), word_distances(texts, len(first)))
    return Estimate(by_score.p_value, expected_false(member), member)


def by_neighbours(member: np.ndarray, *distances: Tensor) -> np.ndarray:
    """Probabilities (n) that rows share a behaviour, from those (n) by their scores, after all rounds.

    Args:
        distances: squared ones of several kinds (n+k n+k) between the rows and, behind them, k queries; a kind in which
            most rows are alike does not count.
    """
    count, queries = len(member), len(distances[0]) - len(member)
    median = [float(one[:count, :count].median()) for one in distances]
    scaled = [one / scale for one, scale in zip(distances, median, strict=True) if scale > _ALIKE]
    if not scaled:
        return member
    kernel = torch.exp(-torch.stack(scaled).mean(0))
    ridged = kernel + RIDGE * torch.eye(count + queries, dtype=torch.float64)
    fold = torch.cat([torch.arange(count), torch.arange(queries)]) % FOLDS
    smoother = torch.zeros(count, count + queries, dtype=torch.float64)  # K_i (K + RIDGE I)^-1, the same in all rounds
    for part in range(FOLDS):
        others, own = torch.where(fold != part)[0], torch.where(fold[:count] == part)[0]
        solved = torch.linalg.solve(ridged[others][:, others], kernel[others][:, own])
        smoother[own[:, None], others] = solved.T
    known = torch.cat([torch.from_numpy(member).double(), torch.ones(queries, dtype=torch.float64)])
    for _ in range(ROUNDS):
        found = (smoother @ known).clamp(0, 1)
        likely, unlikely = found**3, (1 - found) ** 3
        known[:count] = likely / (likely + unlikely)
    return known[:count].numpy()


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distances (n n) between rows (n D), in float64."""
    square = rows.double().square().sum(1)
    return (square[:, None] + square - 2 * rows.double() @ rows.double().T).clamp(min=0)


def word_distances(texts: Sequence[str], rows: int) -> Tensor:
    """Squared distances (n n) of texts by their words: ``2 - 2 cos``, a word weighted by ``log(rows / rows with it)``.

    Args:
        rows: the first texts, which say how rare a word is; words that only one of them has do not count.
    """
    found = [set(words(text)) for text in texts]
    count = Counter(word for one in found[:rows] for word in one)
    weight = {word: math.log(rows / n) for word, n in sorted(count.items()) if n > 1}
    column = {word: i for i, word in enumerate(weight)}
    entries = [(i, column[word], weight[word]) for i, one in enumerate(found) for word in one & column.keys()]
    of_text, of_word, value = torch.tensor(entries, dtype=torch.float64).reshape(-1, 3).T
    product = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for start in range(0, len(weight), _WORDS):
        here = (of_word >= start) & (of_word < start + _WORDS)
        part = torch.zeros(len(texts), _WORDS, dtype=torch.float64)
        part[of_text[here].long(), of_word[here].long() - start] = value[here]
        product += part @ part.T
    norm = product.diagonal().sqrt().clamp(min=1e-12)
    return (2 - 2 * product / (norm[:, None] * norm)).clamp(min=0)


def expected_false(member: np.ndarray) -> np.ndarray:
    """For each row, the expected share of false ones among it and all rows with a higher probability (N)."""
    order = np.argsort(-member, kind="stable")
    share = np.empty(len(member))
    share[order] = np.cumsum(1 - member[order]) / np.arange(1, len(member) + 1)
    return share


def _scaled(store: AttributionStore, rows: np.ndarray, rule: BehaviourRule) -> Tensor:
    """Unit rows of all fields side by side (n D), each field scaled by the root of its total variance."""
    read = store.read(rows, list(rule.fields))
    fields = [unit(read[key].double()) / max(one.spectrum.trace, 1e-30) ** 0.5 for key, one in rule.fields.items()]
    return torch.cat(fields, dim=1)
