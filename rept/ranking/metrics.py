"""Measures of rankings by labels, and of token scores by marked words.

They depend only on the ranks of the relevant rows in the whole ranking, not on the sign or size of a score
(torchmetrics' retrieval measures drop scores <= 0). Equal scores rank by row number, as in the results.

For one query, with R relevant rows at the ranks ``r_1 < r_2 < ...`` (from 1) among N:

* ``precision@k``: relevant rows among the first k, over min(k, N)
* ``recall@k``: relevant rows among the first k, over R
* ``r_precision``: precision at R
* ``average_precision``: mean over i of ``i / r_i``, over the whole ranking
* ``reciprocal_rank``: ``1 / r_1``

and for several queries the mean of each, and

* ``pooled_average_precision@k``: the average precision of *one* list with the k best hits of all queries, sorted by
  score. This is the published figure (arXiv 2510.02334). It measures whether scores of different queries are
  comparable, not whether all relevant rows are found: rows beyond k do not count, in either part of the fraction.
  Equal scores are ordered by their rank for their own query, then by query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from rept.data.samples import SpanKind

CUTOFFS = (10, 50, 100)

Measures = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """Where the relevant rows are in a query's whole ranking."""

    ranks: np.ndarray  # (R) ranks of the relevant rows, from 1, ascending
    rows: int  # N
    top_score: np.ndarray  # (k) the best scores, descending
    top_relevant: np.ndarray  # (k) bool


def measures(
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    query_labels: Sequence[str | None],
    train_labels: Sequence[str | None],
    same: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measures over all labelled queries and for each label; a training row is relevant if it has the query's label.

    Memory: one whole ranking at a time.

    Args:
        read: returns a query's whole ranking: row numbers (N) and scores (N), in any order.
        query_labels: one each query; a query without a label (None) is left out.
        train_labels: one each training row.
        same: by query, the rows that are the query itself. They are left out, except in ``with_same``.

    Returns:
        ``{"overall": {...}, "labels": {LABEL: {...}}, "queries": {"average_precision": [...]}}``, and the same again
        over all rows in ``with_same``. The first two each with ``queries``, the number of queries that count, and
        ``without_relevant``, the number of those for which no row has the label: they have no measure, and None in the
        list of queries. Empty if no query, or no training row, has a label.
    """
    codes = {label: code for code, label in enumerate(sorted({label for label in train_labels if label is not None}))}
    row_code = np.array([-1 if label is None else codes[label] for label in train_labels])
    if not codes or not any(label is not None for label in query_labels):
        return {}
    others: list[Judged | None] = [None] * len(query_labels)
    every = others.copy()
    for query, label in enumerate(query_labels):
        if label in codes:
            (row, score), relevant = read(query), row_code == codes[label]
            others[query] = every[query] = judge(row, score, relevant)
            if found := same.get(query):
                kept = ~np.isin(row, found)
                others[query] = judge(row[kept], score[kept], relevant)
    return _by_label(others, query_labels) | {"with_same": _by_label(every, query_labels)}


def _by_label(judged: Sequence[Judged | None], labels: Sequence[str | None]) -> dict[str, Any]:
    """The measures overall and by label, and of each query."""
    of_label: dict[str, list[Judged | None]] = {}
    for one, label in zip(judged, labels, strict=True):
        if label is not None:
            of_label.setdefault(label, []).append(one)
    return {
        "overall": summarize([one for together in of_label.values() for one in together]),
        "labels": {label: summarize(of_label[label]) for label in sorted(of_label)},
        "queries": {"average_precision": [None if one is None else average_precision(one.ranks) for one in judged]},
    }


def judge(row: np.ndarray, score: np.ndarray, relevant: np.ndarray) -> Judged | None:
    """The ranks of the relevant rows among rows (N) with scores (N); None if there are none.

    Args:
        relevant: bool by row number.
    """
    order = np.lexsort((row, -score))
    found, deepest = relevant[row[order]], max(CUTOFFS)
    ranks = 1 + np.flatnonzero(found)
    return Judged(ranks, len(row), score[order[:deepest]], found[:deepest]) if len(ranks) else None


def summarize(judged: Sequence[Judged | None]) -> Measures:
    """The mean measures of queries, and their number."""
    found = [one for one in judged if one is not None]
    summary: Measures = {"queries": len(found), "without_relevant": len(judged) - len(found)}
    if not found:
        return summary
    for k in CUTOFFS:
        summary[f"precision@{k}"] = _mean([(one.ranks <= k).sum() / min(k, one.rows) for one in found])
    for k in CUTOFFS:
        summary[f"recall@{k}"] = _mean([(one.ranks <= k).mean() for one in found])
    summary["r_precision"] = _mean([(one.ranks <= len(one.ranks)).mean() for one in found])
    summary["average_precision"] = _mean([average_precision(one.ranks) for one in found])
    for k in CUTOFFS:
        summary[f"pooled_average_precision@{k}"] = pooled_average_precision(found, k)
    summary["reciprocal_rank"] = _mean([1 / one.ranks[0] for one in found])
    return summary


def average_precision(ranks: np.ndarray) -> float:
    """Mean over i of ``i / r_i``, for the ranks r of what is relevant, from 1, ascending; 0 without any.

    Example:
        >>> average_precision(np.array([1, 4]))
        0.75
    """
    return _mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0


def pooled_average_precision(judged: Sequence[Judged], k: int) -> float:
    """The published variant: see the top of this file."""
    score = np.concatenate([one.top_score[:k] for one in judged])
    relevant = np.concatenate([one.top_relevant[:k] for one in judged])
    rank = np.concatenate([np.arange(len(one.top_score[:k])) for one in judged])
    order = np.lexsort((rank, -score))
    return average_precision(1 + np.flatnonzero(relevant[order]))


def token_average_precision(scores: Sequence[float], marked: Sequence[bool]) -> float | None:
    """Average precision of token scores for the marked tokens, equal scores by position; None if none is marked.

    Example:
        >>> token_average_precision([0.1, 0.9, 0.2, 0.3], [False, True, True, False])
        0.8333333333333333
    """
    relevant = np.asarray(marked, dtype=bool)
    if not relevant.any():
        return None
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return average_precision(1 + np.flatnonzero(relevant[order]))


def token_measures(
    scores: Sequence[float], marked: Sequence[SpanKind | None], response: Sequence[bool]
) -> dict[str, float | None]:
    """`token_average_precision` over a text, of its triggers within the prompt, of its payloads within the response.

    Of each token: its score, the kind of the span that it is part of, and whether it is the response's.
    """

    def within(kind: SpanKind, part: bool) -> float | None:
        own = [i for i, of_response in enumerate(response) if of_response is part]
        return token_average_precision([scores[i] for i in own], [marked[i] == kind for i in own])

    return {
        "token_average_precision": token_average_precision(scores, [kind is not None for kind in marked]),
        "token_average_precision_prompt": within("trigger", False),
        "token_average_precision_response": within("payload", True),
    }


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values))
