"""Layer strategies beyond the published one, on curves that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from extractors.layers import deepest_drops, stable_transition
from extractors.layers.deepest_drops import DeepestDrops
from extractors.layers.gradient_norm import GradientNorm
from extractors.layers.stable_transition import StablePhaseTransition
from rept.errors import UsageError
from rept.evaluation import oracle
from tests.helpers.tiny import LAYERS, tiny_batch, tiny_model


@pytest.fixture
def curves_are(monkeypatch):
    def known(curves):
        for module in (deepest_drops, stable_transition):
            monkeypatch.setattr(module, "adjacent_cosine", lambda model, probe: torch.tensor(curves))

    return known


def chosen(strategy):
    return strategy(nn.Module(), [tiny_batch()])


def test_all_votes_for_one_clear_drop(curves_are):
    curves_are([[0.9, 0.4 + 0.01 * i, 0.8, 0.1] for i in range(8)])
    choice = chosen(StablePhaseTransition())
    assert choice.layers == [3] and choice.agreement == 1
    assert "95% interval: 3 to 3" in choice.reason


def test_votes_are_those_of_a_plain_bootstrap(curves_are):
    generator = np.random.default_rng(0)
    curves = np.concatenate([0.5 + 0.1 * generator.standard_normal((40, 3)), np.zeros((40, 1))], axis=1)
    curves[:, 1] -= 0.02
    curves_are(curves.tolist())
    choice = chosen(StablePhaseTransition(samples=4000))
    layers = [curves[generator.integers(40, size=40)].mean(0)[:-1].argmin() + 2 for _ in range(4000)]
    share = np.mean(np.array(layers) == choice.layers[0])
    assert choice.agreement == pytest.approx(share, abs=0.04)
    assert share < 0.95  # or the vote would be beside the point
    low, high = np.quantile(layers, [0.025, 0.975], method="nearest")
    assert f"interval: {low:.0f} to {high:.0f}" in choice.reason
    assert chosen(StablePhaseTransition(samples=4000)) == choice


@pytest.mark.parametrize("curve", [[0.9, 0.895, 0.9, 0.1], [0.5], []])
def test_without_a_clear_drop_the_votes_go_to_the_last_layer(curves_are, curve):
    curves_are([curve] * 3)
    assert chosen(StablePhaseTransition()).layers == [len(curve) + 1]


@pytest.mark.parametrize(
    ("curve", "layers"),
    [([0.9, 0.5, 0.8, 0.4, 0.1], [3, 5]), ([0.3, 0.9], [2]), ([0.5], [2])],
)
def test_the_layers_after_the_deepest_drops(curves_are, curve, layers):
    curves_are([curve] * 3)
    assert chosen(DeepestDrops(k=2)).layers == layers


def test_the_gradient_s_curve_is_the_oracle_s():
    model, batch = tiny_model(), tiny_batch()
    choice = GradientNorm()(model, [batch.select([0, 1]), batch.select([]), batch.select([2, 3])])
    for i, (input_ids, labels) in enumerate(oracle.samples(batch)):
        for layer in range(1, LAYERS + 1):
            exact = oracle.signature(oracle.states(model, input_ids, labels, layer), labels).gradient.norm()
            assert choice.probes[i][layer - 1] == pytest.approx(float(exact), rel=1e-4)
    assert choice.curve == pytest.approx(np.mean(choice.probes, axis=0).tolist())
    assert choice.layers == [1 + int(np.argmax(choice.curve[:-1]))]


def test_an_empty_probe_is_reported():
    with pytest.raises(UsageError, match="no training row"):
        GradientNorm()(tiny_model(), [])


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientNorm(n=0),
        lambda: DeepestDrops(k=0),
        lambda: StablePhaseTransition(samples=0),
        lambda: StablePhaseTransition(coverage=1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(UsageError, match="layers"):
        make()
