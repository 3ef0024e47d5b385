"""How well scores predict the effect of retraining on subsets of the training rows.

f(S) is the output, for a query, of a model that was trained on the rows S alone, such as its log-likelihood of the
query's response. An attribution tau predicts that f(S) grows with ``sum_{i in S} tau_i`` (the effects of rows add up).
The linear datamodeling score of a query is Spearman's rank correlation over subsets S of this sum and f(S) (Park,
Georgiev, Ilyas, Leclerc and Madry, "TRAK", ICML 2023, arXiv 2303.14186; Ilyas et al., "Datamodels", ICML 2022, arXiv
2202.00622). Only sums are needed, so scores of many rows need not be in memory together. Subsets should have the same
size: otherwise the sum of scores that are all positive grows with the number of rows alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def jackknife(statistic: Callable[[np.ndarray], float], samples: int) -> np.ndarray:
    """Returns (M) a statistic without each of M samples, here trainings; it gets the numbers of the others."""
    every = np.arange(samples)
    return np.array([statistic(np.delete(every, i)) for i in every])


def jackknife_error(without: np.ndarray) -> float:
    """The standard error of a statistic from its `jackknife` values t: ``sqrt((M - 1) / M * sum_i (t_i - mean)^2)``.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 11.2. For the difference of two statistics,
    it is that of their values' differences. A bootstrap would repeat trainings, and equal values have equal ranks.
    """
    return float(np.sqrt((len(without) - 1) * without.var()))


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation (Q) of the columns of two matrices (M Q), M >= 2; 0 where a column is constant."""
    if one.shape != other.shape or one.ndim != 2 or len(one) < 2:
        raise ValueError(f"Expected matrices (M Q) of at least two rows, but got shapes {one.shape} and {other.shape}.")
    a, b = _centred_ranks(one), _centred_ranks(other)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    found: np.ndarray = np.divide((a * b).sum(0), scale, out=np.zeros(len(scale)), where=scale > 0)
    return found


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """The ranks in each column (M Q) minus their mean; equal values have their mean rank."""
    ranks = np.empty(values.shape)
    for column, found in zip(values.T, ranks.T, strict=True):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        found[:] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks - (len(values) + 1) / 2
