"""The layer by labels: the curve against scikit-learn, the drawn rows, and probes that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from extractors.layers import labelled_rows
from extractors.layers.labelled_rows import LabelledProbe, precision_by_layer
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.run.prepare import prepare
from rept.run.sample_rows import sample_rows
from tests.helpers.tiny import LAYERS, tiny_batch, tiny_model

LABELS = ["a", None, "a", "b", None, "b", "a", "lone"]


def test_precision_is_scikit_learn_s():
    states = torch.randn(3, len(LABELS), 5, generator=torch.Generator().manual_seed(0))
    found = precision_by_layer(states, LABELS)
    asking = [0, 2, 3, 5, 6]  # clean rows and one whose label no other has are no queries
    assert found.shape == (len(asking), 3)
    for number, i in enumerate(asking):
        others = [j for j in range(len(LABELS)) if j != i]
        for layer in range(3):
            x = states[layer].double().numpy()
            cosine = x @ x[i] / np.linalg.norm(x, axis=1)
            exact = average_precision_score([LABELS[j] == LABELS[i] for j in others], cosine[others])
            assert found[number, layer] == pytest.approx(exact)


def test_of_equal_layers_the_last_is_chosen(monkeypatch):
    batch = tiny_batch()
    worse, better = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    states = torch.stack([worse, better, better, worse])
    monkeypatch.setattr(labelled_rows, "layer_states", lambda model, probe, position: [(one, states) for one in probe])
    labels = dict(zip(batch.row.tolist(), ["a", "a", "b", "b"], strict=True))
    choice = LabelledProbe()(None, [batch], labels)
    assert choice.layers == [3] and choice.curve[1:3] == [1, 1] > choice.curve[::3]


@pytest.mark.parametrize("labels", [[None] * 4, ["a", "b", None, None], ["a"] * 4])
def test_a_probe_without_labels_of_both_kinds_is_reported(labels):
    batch = tiny_batch()
    with pytest.raises(UsageError, match="layers=labelled_probe needs labels"):
        LabelledProbe()(tiny_model(), [batch], dict(zip(batch.row.tolist(), labels, strict=True)))


def test_an_empty_probe_and_a_small_one_are_reported():
    with pytest.raises(UsageError, match="needs labels"):
        LabelledProbe()(tiny_model(), [tiny_batch().select([])], {})
    with pytest.raises(UsageError, match=r"layers\.n must be at least 3, two rows with one label and .*, not 2"):
        LabelledProbe(n=2)


@pytest.mark.parametrize("position", ["last_prompt", "text_mean"])
def test_rows_of_all_batches_are_ranked_at_their_position(position):
    model, batch = tiny_model(), tiny_batch([(3, 4), (7, 2), (2, 2), (5, 9), (4, 4)])
    labels = {0: "x", 1: None, 2: "x", 3: None, 4: "x"}
    parts = [batch.select([3, 1]), batch.select([]), batch.select([0, 4, 2])]
    choice = LabelledProbe(position=position)(model, parts, labels)
    hidden = model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states[1:]
    last, length = batch.prompt_end.tolist(), batch.length.tolist()
    at = [slice(end, end + 1) if position == "last_prompt" else slice(n) for end, n in zip(last, length, strict=True)]
    states = torch.stack([torch.stack([h[i, at[i]].mean(0) for i in range(5)]) for h in hidden])
    exact = precision_by_layer(states, [labels[i] for i in range(5)])
    np.testing.assert_allclose(sorted(choice.probes), sorted(exact.tolist()))
    assert choice.curve == pytest.approx(exact.mean(0).tolist())
    assert len(choice.curve) == LAYERS and choice.first == 1
    best = max(layer for layer in range(LAYERS) if exact.mean(0)[layer] == pytest.approx(exact.mean(0).max()))
    assert choice.layers == [best + 1]
    assert choice.agreement == pytest.approx((exact[:, best] >= exact.max(1) - 1e-12).mean())


def test_a_run_chooses_by_labels_and_says_so(material, tmp_path):
    more = ["layers=labelled_probe", "layers.n=12"]
    wish = [a for a in material.arguments(tmp_path / "run", *more) if not a.startswith("layers.layers")]
    trace = attribute(compose(AttributeConfig, wish))
    chosen = Trace(trace.folder.path).layers
    labels = [material.rows[row]["label"] for row in chosen["probe_rows"]]
    assert labels.count("odd") == 6 and len(chosen["probes"]) == 6
    assert "Chosen by labels" in chosen["reason"] and len(chosen["curve"]) == 3


def test_planted_and_clean_rows_are_drawn_alternately(material, tmp_path):
    job = prepare(material.config(tmp_path))
    rows = sample_rows(job, 6, balanced=True)
    assert [material.rows[row]["label"] for row in rows].count("odd") == 3
    assert sample_rows(job, 1000, balanced=True) == sample_rows(job, 1000)  # all that can be attributed
    assert sample_rows(job, 0) == []
