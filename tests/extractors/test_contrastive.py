"""Signature differences against a direct computation by the oracle, and models that are no base model."""

from __future__ import annotations

import shutil

import pytest
import torch

from extractors.baselines.text_length import TextLength
from extractors.sites.contrastive import Contrastive
from extractors.sites.residual_stream import ResidualStream
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.evaluation import oracle
from rept.evaluation.compare import compare
from rept.model.architecture import Architecture
from rept.model.loading import load_model, load_tokenizer
from rept.run.pipeline import attribute
from rept.training.from_scratch import tiny_llama
from rept.types import Key
from rept.utils.json_files import read_json
from tests.helpers import templates
from tests.helpers.tiny import tiny_batch, tiny_model
from tests.run.test_prepare import with_own_tokenizer


@pytest.fixture(scope="module")
def base_at(material, tmp_path_factory):
    """Writes a model with the material's tokenizer, or another one, and returns its folder."""

    def write(path=None, kind="llama_3", **shape):
        path = path or tmp_path_factory.mktemp("base")
        tokenizer = templates.build(templates.KINDS[kind])
        given = {"width": 32, "layers": 3, "heads": 4, "seed": 1, "eos_token_id": tokenizer.eos_token_id} | shape
        tiny_llama(vocab_size=len(tokenizer), **given).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    return write


def attached(material, base, fields=("representation", "gradient")):
    model = load_model(str(material.model))
    extractor = Contrastive(base, ResidualStream(fields))
    extractor.attach(model, load_tokenizer(str(material.model)))
    return model, extractor


@pytest.mark.parametrize("layer", [2, 3])
def test_each_field_is_the_difference_of_the_oracle_s(material, base_at, layer):
    base = base_at()
    (model, extractor), batch = attached(material, base), tiny_batch(pad=2)
    signature = extractor(model, batch, [layer])
    for i, (ids, labels) in enumerate(oracle.samples(batch)):
        after, before = (
            oracle.signature(oracle.states(one, ids, labels, layer), labels) for one in (model, load_model(base))
        )
        for field in ("representation", "gradient"):
            exact = getattr(after, field) - getattr(before, field)
            torch.testing.assert_close(
                signature[Key("residual_stream", layer, field)][i], exact.float(), rtol=1e-4, atol=1e-6
            )


def test_a_lora_model_is_its_own_base_without_the_adapter():
    model, plain, batch = tiny_model(lora=True), tiny_model(), tiny_batch()
    read = ResidualStream()
    extractor = Contrastive(None, read)
    extractor.attach(model, None)
    signature = extractor(model, batch, [1, -1])
    whole, before = read(model, batch, [1, -1]), read(plain, batch, [1, -1])
    assert extractor.content() == {}  # the weights' fingerprint holds both
    for key, block in signature.items():
        assert block.norm() > 0.01 * whole[key].norm()
        torch.testing.assert_close(block, whole[key] - before[key])


def test_code_of_the_base_model_runs_only_if_it_is_trusted(material, base_at, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = str(with_own_tokenizer(base_at(), tmp_path / "base"))
    with pytest.raises(UsageError, match=r"extractor\.trust_remote_code=true"):
        attached(material, base)
    extractor = Contrastive(base, ResidualStream(), trust_remote_code=True)
    extractor.attach(load_model(str(material.model)), load_tokenizer(str(material.model)))
    assert extractor.content()


def test_token_scores_are_read_from_the_fine_tuned_model(material, base_at):
    (model, extractor), batch = attached(material, base_at(), ["representation"]), tiny_batch()
    plain = ResidualStream().all_positions(model, batch, [2])
    assert all(torch.equal(block, plain[key]) for key, block in extractor.all_positions(model, batch, [2]).items())


def test_parts_that_the_user_names_are_those_of_both_models(material, base_at):
    model = load_model(str(material.model))
    Architecture.of(model, blocks="model.layers", final_norm="model.layers.2", attention="mlp")
    extractor = Contrastive(base_at(), ResidualStream())
    extractor.attach(model, load_tokenizer(str(material.model)))
    base = Architecture.of(extractor._model)
    assert base.final_norm is extractor._model.model.layers[2]
    assert base.attention_output(1) is extractor._model.model.layers[0].mlp


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layers": 2}, "it has 2 layers, the model has 3"),
        ({"width": 16}, "it has 16 numbers in a hidden state, the model has 32"),
        ({"kind": "llama_2"}, "another vocabulary"),
    ],
)
def test_another_shape_is_no_base(material, base_at, other, message):
    with pytest.raises(UsageError, match=message):
        attached(material, base_at(**other))


def test_what_cannot_be_a_base_is_reported(material):
    with pytest.raises(UsageError, match="There is no folder .*no_such"):
        attached(material, "no_such folder")
    with pytest.raises(UsageError, match=r"extractor\.base is not set"):
        attached(material, None)
    with pytest.raises(UsageError, match="read sites of the model.*got TextLength"):
        Contrastive(None, TextLength())
    model, extractor = attached(material, str(material.model))
    with pytest.raises(UsageError, match="give the same signatures"):
        extractor(model, tiny_batch(), [2])


def arguments(material, *more):
    left_out = ("report=", "tokens.hits=", "out=", "layers")
    return [a for a in material.arguments("unused") if not a.startswith(left_out)] + [*more]


def test_another_model_at_the_base_s_place_is_another_store(material, base_at, tmp_path):
    base = base_at(tmp_path / "base")
    wish = arguments(material, "experiment=contrastive", f"extractor.base={base}", f"out={tmp_path}/run")
    wish += ["report=false", "tokens.hits=0"]
    found = attribute(compose(AttributeConfig, wish), show_result=False)
    assert found.hits(0) and "base model" in read_json(tmp_path / "run/provenance.json")["fingerprints"]
    attribute(compose(AttributeConfig, wish), show_result=False)  # reused
    shutil.rmtree(base)
    base_at(tmp_path / "base", seed=2)
    with pytest.raises(UsageError, match="holds signatures made differently: base model was"):
        attribute(compose(AttributeConfig, wish), show_result=False)


def test_in_a_comparison_it_is_a_row_or_the_reason_why_not(material, base_at, tmp_path):
    wish = arguments(material)
    assert "extractor.base is not set" in compare(["contrastive"], wish, tmp_path / "without")[0].reason
    done = compare(["rept", "contrastive"], [*wish, f"contrastive.extractor.base={base_at()}"], tmp_path / "with")
    assert [outcome.reason for outcome in done] == [None, None]
    assert done[0].queries["average_precision"] != done[1].queries["average_precision"]
