"""How well scores predict the effect of retraining: two measures, each for one query.

Models are trained from scratch on subsets S of the training rows. f(S) is the output of such a model for the query:
minus the mean cross-entropy of the query's response. An attribution tau predicts that f(S) grows with
``sum_{i in S} tau_i`` (the effects of the rows add up).
"""

from __future__ import annotations

import numpy as np


def linear_datamodeling_score(scores: np.ndarray, subsets: np.ndarray, outputs: np.ndarray) -> float:
    """Spearman's rank correlation of ``sum_{i in S} tau_i`` and ``f(S)`` over subsets.

    Park, Georgiev, Ilyas, Leclerc and Madry, "TRAK", ICML 2023; Ilyas et al., "Datamodels", ICML 2022. Subsets should
    have the same size: otherwise the sum of scores that are all positive grows with the number of rows alone.

    Args:
        scores: (N) tau of each training row.
        subsets: (M N) bool: the rows that each of M models was trained on.
        outputs: (M) f of each model.

    Raises:
        ValueError: there are fewer than two subsets, or the shapes do not match.
    """
    return _spearman(_sums(scores, subsets, outputs), outputs)


def leave_k_out_agreement(scores: np.ndarray, left_out: np.ndarray, outputs: np.ndarray, whole: float) -> float:
    """Spearman's rank correlation of ``sum_{i in K} tau_i`` and ``f(all) - f(all without K)`` over sets K left out.

    High if leaving out the rows with the highest scores lowers the model's output for the query most. The sets should
    have the same size and include high-scoring, low-scoring and random rows, so that they differ enough to compare.

    Args:
        scores: (N) tau of each training row.
        left_out: (M N) bool: the rows left out of the training of each of M models.
        outputs: (M) f of each model.
        whole: f of the model trained on all rows.

    Raises:
        ValueError: there are fewer than two sets, or the shapes do not match.
    """
    return _spearman(_sums(scores, left_out, outputs), whole - outputs)


def _sums(scores: np.ndarray, chosen: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    if chosen.shape != (len(outputs), len(scores)) or len(outputs) < 2:
        raise ValueError(
            f"Expected at least two sets (M N) with M outputs and N scores, but got {chosen.shape}, {outputs.shape} "
            f"and {scores.shape}."
        )
    return chosen.astype(np.float64) @ scores.astype(np.float64)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of the ranks; equal values share their mean rank. 0 if either side is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
