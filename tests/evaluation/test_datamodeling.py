"""Both measures compared with SciPy's rank correlation, and on data with known effects; the jackknife."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.leave_k_out import leave_k_out_agreements
from rept.evaluation.datamodeling import (
    jackknife,
    jackknife_error,
    rank_correlations,
)

RNG = np.random.default_rng(0)
SUBSETS = np.stack([RNG.permutation(40) < 20 for _ in range(25)])
EFFECTS = RNG.normal(size=(40, 3))  # of rows on queries


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_both_equal_spearmans_correlation_of_sums_and_outputs(noise):
    outputs = np.round(SUBSETS @ EFFECTS + noise * RNG.normal(size=(25, 3)), 1)  # rounded: ties
    sums = SUBSETS @ (EFFECTS + noise * RNG.normal(size=EFFECTS.shape))
    expected = [spearmanr(sums[:, q], outputs[:, q]).statistic for q in range(3)]
    assert rank_correlations(sums, outputs) == pytest.approx(expected)
    assert leave_k_out_agreements(sums, outputs, np.full(3, 3.0)) == pytest.approx([-one for one in expected])


def test_true_effects_predict_perfectly_and_their_negatives_inversely():
    outputs = SUBSETS @ EFFECTS
    assert rank_correlations(outputs, outputs) == pytest.approx([1, 1, 1])
    assert rank_correlations(-outputs, outputs) == pytest.approx([-1, -1, -1])
    whole = EFFECTS.sum(0)
    assert leave_k_out_agreements(outputs, whole - outputs, whole) == pytest.approx([1, 1, 1])
    assert rank_correlations(np.zeros((25, 3)), outputs).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 3), (24, 3), (25, 2), (25,)])
def test_too_few_sets_and_wrong_shapes_are_refused(shape):
    sums = np.zeros((1, 3)) if shape == (1, 3) else np.zeros((25, 3))
    with pytest.raises(ValueError, match="of at least two rows, but got shapes"):
        rank_correlations(sums, np.zeros(shape))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = RNG.normal(size=30)
    found = jackknife_error(jackknife(lambda kept: float(values[kept].mean()), 30))
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_the_error_of_a_score_is_the_spread_over_new_trainings():
    """For 40 sets of 30 trainings, the mean jackknife error is near the standard deviation of the score."""
    found, errors = [], []
    for _ in range(40):
        sums = RNG.normal(size=(30, 5))
        outputs = sums + 2 * RNG.normal(size=(30, 5))
        found.append(rank_correlations(sums, outputs).mean())
        without = jackknife(lambda kept, s=sums, o=outputs: rank_correlations(s[kept], o[kept]).mean(), 30)
        errors.append(jackknife_error(without))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.35)
