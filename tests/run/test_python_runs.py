"""Runs made from Python: their objects' settings are recorded, and their signatures can be ranked again."""

from __future__ import annotations

import json

import pytest
import torch

import rept
from extractors.layers.deepest_drops import DeepestDrops
from extractors.sites.residual_stream import ResidualStream
from rept.config.schema import TARGET
from rept.errors import UsageError
from rept.model.loading import load_model, load_tokenizer
from rept.results.trace import Trace
from rept.run.recorded import NOT_REBUILDABLE, as_node, check_rebuildable
from rept.run.rescore import score
from rept.utils.json_files import read_json
from scorers.base import Scorer
from scorers.block_cosine import BlockCosine
from scorers.cosine import Cosine


class Tilted(Scorer):
    """A scorer whose setting cannot be read from an attribute of the same name."""

    def __init__(self, weight: float = 1.0) -> None:
        self.tilt = weight

    def __call__(self, train, query):
        return self.tilt * train["representation"] @ query["representation"].T


class Hidden(Tilted):
    """One that keeps its setting in a private attribute of that name."""

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = weight


@pytest.fixture(scope="module")
def loaded(material):
    return load_model(str(material.model)), load_tokenizer(str(material.model))


def traced(loaded, material, out, **given):
    settings = {"datamodule__tokens_per_batch": 256, "max_length": 64, "top_k": 8, "tokens__hits": 1} | given
    return rept.trace(*loaded, material.rows, material.asked, out=out, trainer__accelerator="cpu", **settings)


def hits_of(trace: Trace) -> list:
    return [json.loads(line) for line in trace.folder.results.read_text().splitlines()]


def test_other_settings_of_a_layer_strategy_choose_again(loaded, material, tmp_path, capsys):
    traced(loaded, material, tmp_path / "run", layers=DeepestDrops(n=4, k=3))
    known = read_json(tmp_path / "run/layers.json")
    assert known["strategy"]["settings"] == "DeepestDrops(k=3, probe_rows=4)"
    traced(loaded, material, tmp_path / "run", layers=DeepestDrops(n=4, k=3))
    assert "chosen before, reused" in capsys.readouterr().out
    traced(loaded, material, tmp_path / "run", layers=DeepestDrops(n=4, k=1))
    assert "chosen before" not in capsys.readouterr().out
    assert read_json(tmp_path / "run/layers.json")["strategy"]["settings"] == "DeepestDrops(k=1, probe_rows=4)"


def test_a_run_of_trace_is_ranked_again_with_the_settings_of_its_scorer(loaded, material, tmp_path):
    first = traced(loaded, material, tmp_path / "run", scorer=BlockCosine(0.25), layers="last")
    assert first.config.scorer == {TARGET: "scorers.block_cosine.BlockCosine", "alpha": 0.25}
    (tmp_path / "run").rename(tmp_path / "moved")
    again = score([str(tmp_path / "moved"), f"out={tmp_path / 'again'}"])
    assert hits_of(again) == [json.loads(line) for line in (tmp_path / "moved/results.jsonl").read_text().splitlines()]
    other = score([str(tmp_path / "moved"), "scorer=cosine", f"out={tmp_path / 'other'}"])
    assert hits_of(other) != hits_of(again)


def test_a_scorer_that_cannot_be_rebuilt_is_refused_and_another_ranks(loaded, material, tmp_path):
    traced(loaded, material, tmp_path / "run", scorer=Tilted(2.0), layers="last")
    with pytest.raises(UsageError, match=r"scorer of this run was given in Python .*tilt=2.0.*scorer=cosine"):
        score([str(tmp_path / "run"), f"out={tmp_path / 'again'}"])
    assert score([str(tmp_path / "run"), "scorer=cosine", f"out={tmp_path / 'again'}"]).hits(0)


def test_an_extractor_of_a_class_that_cannot_be_imported_ranks_behaviours_too(loaded, material, tmp_path):
    class Local(ResidualStream):
        pass

    first = traced(loaded, material, tmp_path / "run", extractor=Local(), layers="last")
    again = score([str(tmp_path / "run"), f"out={tmp_path / 'again'}"])
    assert hits_of(again) == hits_of(first) and first.behaviours == ["odd"] == again.behaviours
    assert again.behaviour("odd") == first.behaviour("odd")


def test_samples_that_json_cannot_hold_are_copied_as_text(loaded, material, tmp_path):
    rows = [*material.rows, {"prompt": "Name", "response": float("nan")}, {"prompt": "Name", "response": {1, 2}}]
    settings = {"out": tmp_path / "run", "layers": "last", "trainer__accelerator": "cpu", "tokens__hits": 0}
    rept.trace(*loaded, rows, material.asked, **settings)
    lines = (tmp_path / "run/samples/train.jsonl").read_text().splitlines()
    assert len(lines) == len(rows) and json.loads(lines[-2])["response"] == "NaN"
    assert score([str(tmp_path / "run"), f"out={tmp_path / 'again'}"]).hits(0)


def test_a_node_builds_what_it_records_or_says_that_it_cannot():
    assert as_node(Cosine()) == {TARGET: "scorers.cosine.Cosine"}
    assert NOT_REBUILDABLE in as_node(Cosine(["gradient"]))  # its fields are kept under another name
    check_rebuildable(as_node(BlockCosine(0.75)), "scorer")
    assert as_node(Hidden(2.0)) == {TARGET: f"{__name__}.Hidden", "weight": 2.0}
    for part in (Tilted(2.0), DeepestDrops(n=4)):
        assert NOT_REBUILDABLE in as_node(part)
    vector = BlockCosine()
    vector.alpha = torch.tensor(0.5)
    with pytest.raises(UsageError, match="given in Python"):
        check_rebuildable(as_node(vector), "scorer")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": [2]}, r"Expected layers to be a word .* LayerStrategy, but got \[2\]; .* layers__NAME=value"),
        ({"layers": 2}, "Expected layers to be a word .* but got 2"),
        ({"scorer": Cosine}, "Expected scorer to be a word .* an object of Scorer, but got <class"),
        ({"model": "runs/model"}, "Expected the model to be a loaded model of Transformers, but got a str"),
        ({"train": None}, "Expected `train` to be a list of samples, but got a NoneType"),
        ({"train": iter([])}, "Expected `train` to be a list of samples, but got a list_iterator"),
        ({"queries": {"prompt": "a"}}, "Expected `queries` to be a list of samples, but got a dict"),
        ({"queries": [{"Frage": "a"}]}, "columns found: Frage; rename yours"),
    ],
)
def test_mistakes_in_python_are_one_sentence(loaded, material, given, words):
    parts = {"model": loaded[0], "tokenizer": loaded[1], "train": material.rows, "queries": material.asked}
    with pytest.raises(UsageError, match=words):
        rept.trace(**parts | given)


def test_samples_that_were_not_copied_are_asked_for(loaded, material, tmp_path):
    trace = traced(loaded, material, None, layers="last")
    for again in (lambda: rept.repair(trace, *loaded), lambda: score([str(trace.folder.path), f"out={tmp_path}"])):
        with pytest.raises(UsageError, match="were given in Python and are not in the folder: name one by .*out="):
            again()
