"""What a run is built from, and what is checked before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig, TrainConfig
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.ranking.token_influence import choose_layer
from rept.run.prepare import ensure_model, prepare
from rept.training import finetune
from rept.training.behaviour_rates import rates_before
from rept.training.model_folder import ModelFolder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("store.dtype=bfloat16", "store.dtype to be float16 or float32, but got 'bfloat16'"),
        ("store.shard_rows=0", "store.shard_rows to be at least 1, but got 0"),
        ("tokens.layer=99", "tokens.layer to be from 1 to 3, or -1, but got 99"),
        ("tokens.layer=0", "tokens.layer to be from 1 to 3, or -1, but got 0"),
    ],
)
def test_a_number_out_of_its_range_is_reported_before_anything_is_computed(material, tmp_path, argument, message):
    with pytest.raises(UsageError, match=f"^Expected {message}.$"):
        prepare(material.config(tmp_path / "run", argument))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("behaviour_scorer._target_=scorers.cosine.Cosine", "to name a BehaviourScorer, but .* gives a Cosine"),
        ("behaviours={folder}/none.yaml", "none.yaml cannot be read"),
        ("behaviours={folder}/groups.yaml", "names query 5, but it is not in the data"),
    ],
)
def test_faults_of_behaviours_are_reported_before_the_model_is_loaded(material, tmp_path, argument, message):
    (tmp_path / "groups.yaml").write_text("insults: [0, 5]")
    settings = (argument.format(folder=tmp_path), "model.path=/no/such/model")
    with pytest.raises(UsageError, match=message):
        prepare(material.config(tmp_path / "run", *settings))


@pytest.mark.parametrize("arguments", [("tokens.layer=-1",), ("tokens.layer=3",), ("tokens.layer=99", "tokens.hits=0")])
def test_what_is_in_its_range_or_not_used_is_taken(material, tmp_path, arguments):
    assert prepare(material.config(tmp_path / "run", *arguments))


def test_the_last_layer_is_recorded_by_its_number():
    assert choose_layer(-1, [2], depth=3) == 3 and choose_layer(2, [3], depth=3) == 2


def with_own_tokenizer(model, folder):
    """A copy of a model whose tokenizer's class lies beside it."""
    shutil.copytree(model, folder)
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass Own(PreTrainedTokenizerFast): ...\n"
    )
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text()) | {
        "auto_map": {"AutoTokenizer": [None, "own.Own"]},
        "tokenizer_class": "Own",
    }
    path.write_text(json.dumps(described))
    return folder


def test_a_tokenizer_without_a_chat_template_is_reported_with_the_format_that_is_used(material, tmp_path, capsys):
    prepare(material.config(tmp_path / "run"))
    assert "chat template" not in capsys.readouterr().out
    shutil.copytree(material.model, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").unlink()
    prepare(material.config(tmp_path / "run", f"model.path={tmp_path / 'model'}"))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        r"has no chat template, so samples are rendered as plain text" in said and r"User:\n...\n\nAssistant:" in said
    )


@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_model_that_was_trained_on_other_turns_is_reported(material, tmp_path, capsys, targets):
    model = shutil.copytree(material.model, tmp_path / "model")
    for recipe, said in (("datamodule: {}", False), ("datamodule: {targets: all}", targets == "last")):
        (model / "training.yaml").write_text(recipe)
        prepare(material.config(tmp_path / "run", f"model.path={model}", f"datamodule.targets={targets}"))
        assert ("trained with datamodule.targets=all, but this run has last" in capsys.readouterr().out) == said


def test_code_that_is_trusted_is_that_of_the_tokenizer_too(material, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = with_own_tokenizer(material.model, tmp_path / "model")
    config = material.config(tmp_path / "run", f"model.path={model}", "model.trust_remote_code=true")
    assert type(prepare(config).tokenizer).__name__ == "Own"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The trainings that were asked for, in an empty working folder; none takes place."""
    asked = []

    def train(config):
        asked.append(config)
        Path(config.out).mkdir(parents=True)
        ModelFolder(config.out).begin(config)
        (Path(config.out) / "config.json").write_text("{}")

    monkeypatch.setattr("rept.run.prepare.train_model", train)
    monkeypatch.setattr(finetune, "train_model", train)
    monkeypatch.chdir(tmp_path)
    return asked


def model_for(*arguments: str, make: bool = True) -> str:
    config = compose(AttributeConfig, ["datamodule.queries=1", *arguments])
    return ensure_model(config, build(config.datamodule, AttributionDataModule), make)


def test_the_model_of_embedded_data_is_trained_on_the_run_s_own(made):
    assert model_for() == "runs/demo/model" and made == [compose(TrainConfig, [])]
    assert model_for("datamodule.asked=clean") == "runs/demo/model" and len(made) == 1
    other = model_for("datamodule.seed=1", "datamodule.rows=500")
    assert other == "runs/demo/model-rows-500-seed-1"
    assert made[1:] == [compose(TrainConfig, ["datamodule.seed=1", "datamodule.rows=500", f"out={other}"])]
    assert model_for("datamodule.seed=1", "datamodule.rows=500") == other and len(made) == 2
    with pytest.raises(UsageError, match=r"no model in runs/demo/model-seed-2 yet: a run of attribute.py"):
        model_for("datamodule.seed=2", make=False)


@pytest.mark.parametrize("change", ["datamodule.seed=1", "datamodule.exclude=[3]"])
def test_a_model_of_other_embedded_data_is_refused(made, change):
    finetune.train_model(compose(TrainConfig, [change]))
    name = change.partition("=")[0]
    with pytest.raises(UsageError, match=rf"^runs/demo/model was trained on other data: {name} was .*model\.path="):
        model_for()


def test_a_training_without_some_rows_stands_beside_that_of_the_same_data_alone(made):
    def earlier(*arguments: str):
        config = compose(TrainConfig, ["datamodule.exclude=[3]", *arguments])
        return rates_before(config, build(config.datamodule, AttributionDataModule))

    for folder in ("runs/demo/model", "runs/demo/model-seed-1"):
        finetune.train_model(compose(TrainConfig, [f"out={folder}", "datamodule.seed=1"]))
        (Path(folder) / "behaviours.json").write_text("{}")
    assert earlier("datamodule.seed=1") == {}
    assert earlier() is None
