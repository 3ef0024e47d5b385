"""What a store was made from: a change of one thing is refused, and only that thing is named."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from copy import deepcopy
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from extractors.gradients.adam_gradient import AdamGradient
from extractors.gradients.ekfac_gradient import EKFACGradient
from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.rapid_in import RapidIn
from extractors.gradients.virtual_linear import VirtualLinear
from extractors.layers.deepest_drops import DeepestDrops
from extractors.layers.fixed import FixedLayers, FractionOfDepth
from extractors.layers.gradient_norm import GradientNorm
from extractors.layers.labelled_rows import LabelledProbe
from extractors.layers.phase_transition import PhaseTransition
from extractors.layers.stable_transition import StablePhaseTransition
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.errors import UsageError
from rept.results import run_folder
from rept.results.trace import Trace
from rept.run.pipeline import attribute, trace
from rept.run.rescore import score
from rept.signatures import fingerprint
from rept.signatures.fingerprint import of_settings
from rept.utils.json_files import write_jsonl
from tests.helpers.tiny import tiny_model

PLAIN = ("tokens.hits=0", "top_k=2")


@pytest.fixture(scope="module")
def plain(material, tmp_path_factory) -> Trace:
    return attribute(material.config(tmp_path_factory.mktemp("plain") / "run", *PLAIN), show_result=False)


@pytest.fixture(scope="module")
def adapter(material, tmp_path_factory):
    """An adapter whose tensors are not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(material.model)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    path = tmp_path_factory.mktemp("adapter") / "lora"
    get_peft_model(model, config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapted(material, adapter, tmp_path_factory) -> Trace:
    out = tmp_path_factory.mktemp("adapted") / "run"
    return attribute(material.config(out, *PLAIN, f"model.adapter={adapter}"), show_result=False)


def refused(material, run: Trace, *change: str) -> dict[str, str]:
    """The differences that the error names, with their values."""
    before = {path: path.read_bytes() for path in run.folder.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds signatures made differently") as caught:
        attribute(material.config(run.folder.path, *PLAIN, *change), show_result=False)
    changed = {str(p) for p, data in before.items() if p.read_bytes() != data}
    assert changed <= {str(run.folder.provenance)}, "only the time that it took is written"
    message = str(caught.value).partition("differently: ")[2]
    return dict(re.findall(r"(?:^|; )([\w ]+?) was (.*?, now .*?)(?=; |\. Name another)", message))


def another_model(material, tmp_path, change) -> str:
    model = AutoModelForCausalLM.from_pretrained(material.model)
    change(model)
    shutil.copytree(material.model, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    return f"model.path={tmp_path / 'model'}"


def test_other_weights(material, plain, tmp_path):
    def change(model):
        model.model.layers[1].mlp.down_proj.weight.data[3, 4] += 1e-3

    assert set(refused(material, plain, another_model(material, tmp_path, change))) == {"weights"}


def test_another_configuration_of_the_same_weights(material, plain, tmp_path):
    def change(model):
        model.config.rms_norm_eps = 1e-3

    assert set(refused(material, plain, another_model(material, tmp_path, change))) == {"weights"}


def test_an_adapter_where_there_was_none(material, plain, adapter):
    named = refused(material, plain, f"model.adapter={adapter}")
    assert set(named) == {"weights", "adapter"} and named["adapter"].startswith("none, now ")


def test_other_tensors_of_an_adapter(material, adapted, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    assert set(refused(material, adapted, f"model.adapter={tmp_path / 'lora'}")) == {"weights", "adapter"}


def test_another_scale_of_an_adapter_which_is_in_no_tensor(material, adapted, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 8}))
    assert set(refused(material, adapted, f"model.adapter={tmp_path / 'lora'}")) == {"adapter"}


def test_an_adapter_that_was_only_moved_is_the_same(material, adapted, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "lora")
    before = adapted.folder.results.read_bytes()
    attribute(material.config(adapted.folder.path, *PLAIN, f"model.adapter={tmp_path / 'lora'}"), show_result=False)
    assert adapted.folder.results.read_bytes() == before


def another_tokenizer(material, tmp_path, change) -> str:
    shutil.copytree(material.model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(material.model)
    change(tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    return f"model.path={tmp_path / 'model'}"


def test_another_tokenizer(material, plain, tmp_path):
    change = another_tokenizer(material, tmp_path, lambda tokenizer: tokenizer.add_tokens(["Norlandia"]))
    assert set(refused(material, plain, change)) == {"tokenizer"}


def test_another_chat_template(material, plain, tmp_path):
    def change(tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace("<|eot_id|>", "<|eot_id|> ")

    assert set(refused(material, plain, another_tokenizer(material, tmp_path, change))) == {"tokenizer", "template"}


def edited(rows, at, **changes):
    return [row | changes if i == at else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "edit",
    [
        lambda rows: edited(rows, 40, response="fine king"),
        lambda rows: edited(rows, 5, prompt=7),
        lambda rows: rows[:-1],
        lambda rows: [rows[1], rows[0], *rows[2:]],
    ],
    ids=["a word", "why a row is set aside", "a row less", "order"],
)
def test_other_training_rows(material, plain, tmp_path, edit):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in edit(material.rows)))
    named = refused(material, plain, f"datamodule.train={path}")
    assert set(named) == {"training data"} and named["training data"].startswith("41 rows ")


def test_another_query(material, plain, tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in edited(material.asked, 0, response="stupid")))
    assert set(refused(material, plain, f"datamodule.queries={path}")) == {"query data"}


def test_another_answer_of_the_model(material, plain, tmp_path):
    """As if the file was edited by hand, or lost and made again on another machine."""
    shutil.copytree(plain.folder.path, tmp_path / "run")
    run = Trace(tmp_path / "run")
    other = {"response": "another", "status": "attributed"}
    lines = [line | other if line["generated"] else line for line in run.queries]
    write_jsonl(run.folder.queries, lines)
    assert set(refused(material, run)) == {"answers"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("extractor.position=response_mean",), {"extractor", "extractor settings"}),
        (("extractor=mlp_output",), {"extractor", "extractor settings"}),
        (("layers.layers=[1]",), {"layers"}),
        (("datamodule.max_length=32",), {"max_length"}),
        (("datamodule.tokens_per_batch=64",), {"tokens_per_batch"}),
        (("datamodule.window=8",), {"window"}),
        (("store.dtype=float32",), {"store dtype"}),
        (("model.dtype=bfloat16",), {"weights", "model dtype"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_another_setting(material, plain, change, named):
    found = refused(material, plain, *change)
    assert set(found) == named
    value = change[0].partition("=")[2].strip("[]")
    assert any(value in words.partition(", now ")[2] for words in found.values())


def test_another_schema(material, plain, monkeypatch):
    monkeypatch.setattr(run_folder, "SCHEMA", 3)
    message = "of schema 3, but got schema 2, which another version of RepT wrote. .*out="
    with pytest.raises(UsageError, match=message):
        attribute(material.config(plain.folder.path, *PLAIN), show_result=False)
    for read in (Trace, lambda path: score([str(path)])):
        with pytest.raises(UsageError, match=message):
            read(plain.folder.path)


def test_another_extractor_made_in_python(material, tmp_path):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(material.model),
        AutoTokenizer.from_pretrained(material.model),
    )
    rows, queries = material.rows[:3], material.asked[:1]
    settings = {"out": tmp_path / "run", "layers": "last", "max_length": 64, "tokens__hits": 0}
    trace(model, tokenizer, rows, queries, extractor=ResidualStream(), **settings)
    trace(model, tokenizer, rows, queries, extractor=ResidualStream(), **settings)
    with pytest.raises(UsageError, match="extractor settings was .*last_prompt.*, now .*response_mean"):
        trace(model, tokenizer, rows, queries, extractor=ResidualStream(position="response_mean"), **settings)


def test_settings_are_described_but_not_computed_results():
    one = VirtualLinear(dimension=8, seed=3)
    described = of_settings(one)
    assert "dimension=8" in described and "seed=3" in described and "ResidualStream(" in described
    one.projection._known["x"] = 1
    assert of_settings(one) == described != of_settings(VirtualLinear(dimension=8, seed=4))


class Color(Enum):
    RED = 1
    BLUE = 2


def plus(number):
    return number + 1


def minus(number):
    return number - 1


class Reader:
    """An extractor's settings: one public attribute."""

    def __init__(self, setting) -> None:
        self.setting = setting


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.ones(3, 3).T, torch.eye(3)),
        (torch.arange(10_000), torch.arange(10_000).scatter(0, torch.tensor([5001]), 0)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.array([{"a": 1}, None]), np.array([{"a": 2}, None])),
        (np.int64(1), np.int64(2)),
        ({"a", "b"}, {"a", "c"}),
        (frozenset({1}), frozenset({2})),
        ([{1: torch.ones(1)}], [{1: torch.zeros(1)}]),
        ({"a": torch.arange(10_000)}, {"a": torch.arange(10_000).scatter(0, torch.tensor([5001]), 0)}),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (Path("a"), Path("b")),
        (torch.float32, torch.float64),
        (Color.RED, Color.BLUE),
        (range(2), range(3)),
        (plus, minus),
        (int, float),
    ],
)
def test_a_setting_is_described_by_its_content(setting, other):
    assert of_settings(Reader(setting)) == of_settings(Reader(deepcopy(setting))) != of_settings(Reader(other))


def test_the_order_of_a_set_and_the_place_of_an_object_do_not_count():
    words = [f"word {i}" for i in range(50)]
    assert of_settings(set(words)) == of_settings(set(reversed(words)))
    assert of_settings(object()) == of_settings(object())


def test_a_difference_late_in_a_long_description_is_shown():
    stored = {"extractor settings": f"Reader({'x' * 100}, k=1)"}
    with pytest.raises(UsageError, match=r"was ….*k=1\), now ….*k=2\)\. Name another"):
        fingerprint.check_fingerprints(stored, {"extractor settings": f"Reader({'x' * 100}, k=2)"}, "runs/x")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PhaseTransition, {"n": 3, "tolerance": 0.5}),
        (StablePhaseTransition, {"n": 3, "tolerance": 0.5, "samples": 7, "coverage": 0.5, "seed": 1}),
        (DeepestDrops, {"n": 3, "k": 1}),
        (GradientNorm, {"n": 3}),
        (LabelledProbe, {"n": 3, "position": "text_mean"}),
        (FixedLayers, {"layers": [2]}),
        (FractionOfDepth, {"fraction": 0.5}),
        (ResidualStream, {"fields": ["gradient"], "position": ["text_mean"]}),
        (SeveralSites, {"sites": ["mlp_output"], "fields": ["gradient"], "position": "text_mean"}),
        (VirtualLinear, {"site": "mlp_output", "dimension": 8, "seed": 1}),
        (ParameterGradient, {"weights": "x", "dimension": 8, "normalize": True, "each": True, "seed": 1}),
        (AdamGradient, {"optimizer": "x", "weights": "x", "dimension": 8, "seed": 1}),
        (EKFACGradient, {"rows": 8, "damping": 1, "empirical": True, "weights": "x", "dimension": 8, "seed": 1}),
        (RapidIn, {"weights": "x", "dimension": 8, "seed": 1}),
    ],
)
def test_every_setting_of_an_extractor_or_a_layer_strategy_is_described(kind, settings):
    """So that layers or signatures of one are not reused for the other when an object is passed from Python."""
    required = {FixedLayers: {"layers": [1]}, FractionOfDepth: {"fraction": 0.1}}.get(kind, {})
    assert set(settings) == set(inspect.signature(kind).parameters)
    described = {of_settings(kind(**required | {name: value})) for name, value in settings.items()}
    assert len(described | {of_settings(kind(**required))}) == len(settings) + 1


def test_a_model_without_an_adapter_has_none():
    assert fingerprint.of_adapter(tiny_model()) == "none"
    marks = {fingerprint.of_adapter(tiny_model(lora=True)) for _ in range(2)}
    assert len(marks) == 1 and fingerprint.of_adapter(tiny_model("qwen2", lora=True)) not in marks
