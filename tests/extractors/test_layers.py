"""Layer-selection strategies on models whose curve is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from extractors.layers import phase_transition as strategies
from extractors.layers.fixed import EveryLayer, FixedLayers, FractionOfDepth, LastLayer
from extractors.layers.phase_transition import PhaseTransition, adjacent_cosine
from rept.errors import UsageError
from rept.evaluation import oracle
from tests.helpers import oracle_scores
from tests.helpers.tiny import tiny_batch, tiny_model

SHARED = Path(__file__).parents[3] / "shared"


def curves_of(monkeypatch: pytest.MonkeyPatch, *probes: list[float]) -> None:
    monkeypatch.setattr(strategies, "adjacent_cosine", lambda model, probe: torch.tensor(probes))


def test_curve_is_the_oracles_for_each_sample() -> None:
    model, batch = tiny_model(), tiny_batch()
    curves = adjacent_cosine(model, [batch.select([0, 1]), batch.select([]), batch.select([2, 3])])
    for i, (input_ids, _) in enumerate(oracle.samples(batch)):
        prompt = input_ids[: batch.prompt_end[i] + 1]
        assert curves[i].tolist() == pytest.approx(oracle_scores.adjacent_cosine(model, prompt), abs=1e-6)


def test_the_later_layer_of_the_deepest_drop_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    curves_of(monkeypatch, [0.9, 0.5, 0.8, 0.1], [0.9, 0.6, 0.5, 0.1], [0.9, 0.4, 0.8, 0.1])
    choice = PhaseTransition()(nn.Module(), [tiny_batch()])
    assert choice.layers == [3]  # layers 2 to 3; the pair 4 to 5 is lower, but ends in the final norm
    assert choice.curve == pytest.approx([0.9, 0.5, 0.7, 0.1])
    assert choice.agreement == pytest.approx(2 / 3)
    assert len(choice.probes) == 3
    assert "from layer 2 to 3" in choice.reason


@pytest.mark.parametrize("curve", [[0.9, 0.895, 0.9, 0.1], [0.2, 0.9], [0.5], []])
def test_without_a_clear_minimum_the_last_layer_and_a_reason(monkeypatch: pytest.MonkeyPatch, curve: list) -> None:
    curves_of(monkeypatch, curve)
    choice = PhaseTransition()(nn.Module(), [tiny_batch()])
    assert choice.layers == [len(curve) + 1]
    assert "last layer" in choice.reason
    assert choice.agreement is None


def test_tolerance_is_the_range_that_counts_as_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    curves_of(monkeypatch, [0.9, 0.895, 0.9, 0.1])
    assert PhaseTransition(tolerance=0.001)(nn.Module(), [tiny_batch()]).layers == [3]


def test_an_empty_probe_is_reported() -> None:
    with pytest.raises(UsageError, match="no training row"):
        PhaseTransition()(tiny_model(), [])


def test_plain_strategies_need_no_probe() -> None:
    model = tiny_model()  # three layers
    assert LastLayer()(model).layers == [3]
    assert EveryLayer()(model).layers == [1, 2, 3]
    assert FixedLayers([2, -1, 3])(model).layers == [2, 3]
    assert FixedLayers(2)(model).layers == [2]
    assert [FractionOfDepth(share)(model).layers for share in (0, 0.67, 1)] == [[1], [2], [3]]
    assert {kind.probe_rows for kind in (LastLayer, EveryLayer, FixedLayers, FractionOfDepth)} == {0}
    assert PhaseTransition(n=7).probe_rows == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhaseTransition(n=0), r"layers\.n must be at least 1, not 0"),
        (lambda: FixedLayers([]), r"layers\.layers is empty"),
        (lambda: FixedLayers("all"), r"layers\.layers to be layer numbers, such as 4 or \[4,8\], but got 'all'"),
        (lambda: FixedLayers([0.5]), r"layers\.layers to be layer numbers.* but got \[0\.5\]"),
        (lambda: FractionOfDepth(1.5), r"layers\.fraction must lie between 0 and 1, not 1\.5"),
        (lambda: FixedLayers([4])(tiny_model()), r"1 to 3"),
    ],
)
def test_settings_that_cannot_be_used_are_reported(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official implementation's curve is not beside the project")
def test_curve_equals_the_official_implementations() -> None:
    from datasets import load_from_disk

    from rept.data.encoder import Encoder, collate
    from rept.data.samples import Sample
    from rept.model.loading import load_model, load_tokenizer

    path = str(SHARED / "models" / "alpaca-backdoor-5m")
    official = np.load(SHARED / "reference" / "official_signatures.npz")
    data, encoder = load_from_disk(str(SHARED / "data" / "backdoor")), Encoder(load_tokenizer(path), max_length=512)
    rows = official["row"][:16].tolist()
    samples = [Sample(({"role": "user", "content": data[r]["prompts"]},), data[r]["response"]) for r in rows]
    encoded = [(row, sample, encoder(sample)) for row, sample in zip(rows, samples, strict=True)]
    choice = PhaseTransition()(load_model(path), [collate(encoded, "train", encoder.pad_id)])
    np.testing.assert_allclose(choice.probes, official["adjacent_cosine"], atol=1e-5)
    assert choice.layers == [5]
