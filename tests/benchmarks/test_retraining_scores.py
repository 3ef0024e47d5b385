"""Both measures compared with SciPy's rank correlation, and on data with known effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.retraining_scores import leave_k_out_agreement, linear_datamodeling_score

RNG = np.random.default_rng(0)
SUBSETS = np.stack([RNG.permutation(40) < 20 for _ in range(25)])
EFFECTS = RNG.normal(size=40)


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_both_equal_spearmans_correlation_of_sums_and_outputs(noise):
    outputs = np.round(SUBSETS @ EFFECTS + noise * RNG.normal(size=25), 1)  # rounded: ties
    scores = EFFECTS + noise * RNG.normal(size=40)
    expected = spearmanr(SUBSETS @ scores, outputs).statistic
    assert linear_datamodeling_score(scores, SUBSETS, outputs) == pytest.approx(expected)
    assert leave_k_out_agreement(scores, SUBSETS, outputs, 3.0) == pytest.approx(-expected)


def test_true_effects_predict_perfectly_and_their_negatives_inversely():
    outputs = SUBSETS @ EFFECTS
    assert linear_datamodeling_score(EFFECTS, SUBSETS, outputs) == pytest.approx(1)
    assert linear_datamodeling_score(-EFFECTS, SUBSETS, outputs) == pytest.approx(-1)
    without = EFFECTS.sum() - outputs
    assert leave_k_out_agreement(EFFECTS, SUBSETS, without, EFFECTS.sum()) == pytest.approx(1)
    assert linear_datamodeling_score(np.zeros(40), SUBSETS, outputs) == 0


@pytest.mark.parametrize("outputs", [np.zeros(1), np.zeros(24)])
def test_too_few_sets_and_wrong_shapes_are_refused(outputs):
    with pytest.raises(ValueError, match="Expected at least two sets"):
        linear_datamodeling_score(EFFECTS, SUBSETS[:1], outputs)
