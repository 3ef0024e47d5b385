"""python -m rept prove: the two trainings, the comparison, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rept.commands import exclude, prove
from rept.config.compose import compose, read_yaml
from rept.config.schema import AttributeConfig, TrainConfig
from rept.errors import UsageError
from rept.evaluation import proof
from rept.evaluation.proof import caused, wilson_interval
from rept.model.loading import load_model
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.training.behaviour_rates import Rate
from rept.training.finetune import train_model
from rept.training.from_scratch import tiny_llama
from rept.utils.json_files import read_json
from tests.conftest import Material
from tests.training.test_finetune import TINY


def recipe(material: Material, out: Path, *more: str) -> list[str]:
    """Arguments of train.py that fine-tune the material's model on its rows."""
    settings = ["model=pretrained", "datamodule=instructions", f"datamodule.train={material.train}"]
    settings += [f"model.path={material.model}", "datamodule.max_length=64", "finetune.batch_size=8"]
    return [*settings, "trainer.accelerator=cpu", "trainer.max_epochs=1", f"out={out}", *more]


@pytest.fixture(scope="module")
def traced(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of train.py (``model``), a run that traces it (``run``) and culprits.json."""
    folder = tmp_path_factory.mktemp("traced")
    torch.set_num_threads(1)
    train_model(compose(TrainConfig, recipe(material, folder / "model", f"datamodule.queries={material.queries}")))
    attribute(material.config(folder / "run", f"model.path={folder / 'model'}", "tokens.hits=0"), show_result=False)
    exclude.run([str(folder / "run"), "--first", "2", f"out={folder / 'culprits.json'}"])
    return folder


@pytest.fixture
def copied(traced: Path, tmp_path: Path, material: Material) -> Path:
    """A copy of ``traced`` with a copy of its data, which a test may change."""
    shutil.copytree(traced, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run-proof"))
    shutil.copy(material.train, tmp_path / "train.jsonl")
    shutil.copytree(material.model, tmp_path / "base")
    places = {
        str(traced): tmp_path,
        str(material.train): tmp_path / "train.jsonl",
        str(material.model): tmp_path / "base",
    }
    for file in (tmp_path / "run/config.yaml", tmp_path / "model/training.yaml"):
        text = file.read_text()
        for old, new in places.items():
            text = text.replace(old, str(new))
        file.write_text(text)
    return tmp_path


def call(folder: Path, *more: str) -> dict:
    prove.run([str(folder / "run"), str(folder / "culprits.json"), *more])
    return read_json(folder / "run-proof/proof.json")


def test_the_model_is_trained_again_by_its_own_recipe_without_the_rows_and_without_random_ones(
    traced: Path, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = call(traced)
    printed = " ".join(capsys.readouterr().out.split())
    rows, random = (found["proof"]["rows"][name] for name in ("without", "random"))
    assert rows == sorted({hit.row for hit in _hits(traced / "run") if hit.rank <= 2})
    assert len(random) == len(rows) and not set(random) & {*rows, 5, 11, 17, 23}  # which cannot be trained on
    own = asdict(compose(TrainConfig, recipe(material, traced / "model", f"datamodule.queries={material.queries}")))
    for name, left_out in (("without", rows), ("random", random)):
        folder = traced / "run-proof" / name
        assert read_yaml(folder / "training.yaml") == own | {
            "datamodule": own["datamodule"] | {"exclude": left_out}, "out": str(folder)
        }  # fmt: skip
        assert read_json(folder / "training.json")["rows"] == 37 - len(rows)
    assert f"without the {len(rows)} rows" in printed and f"without {len(rows)} rows at random" in printed
    assert found["before"] == read_json(traced / "model/behaviours.json")
    listed = ",".join(map(str, rows))
    again = recipe(material, tmp_path / "again", f"datamodule.exclude=[{listed}]")
    train_model(compose(TrainConfig, again))
    weights, expected = (load_file(f / "model.safetensors") for f in (traced / "run-proof/without", tmp_path / "again"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def _hits(run: Path) -> list:
    trace = Trace(run)
    return [hit for query in trace.answered for hit in trace.hits(query)]


def test_a_stopped_proof_resumes_and_a_finished_one_is_shown(copied: Path, monkeypatch, capsys):
    trained, asked = [], []
    train, ask = proof.train_model, proof.ask_behaviours

    def stopped(config, behaviours):
        trained.append(Path(config.out).name)
        if trained == ["without", "random"]:
            raise KeyboardInterrupt
        train(config, behaviours)

    monkeypatch.setattr(proof, "train_model", stopped)
    monkeypatch.setattr(proof, "ask_behaviours", lambda *given: asked.append(1) or ask(*given))
    with pytest.raises(KeyboardInterrupt):
        call(copied)
    found = call(copied)
    first = (copied / "run-proof/without/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert call(copied) == found
    assert capsys.readouterr().out.count("already holds this model") == 2
    assert (copied / "run-proof/without/model.safetensors").stat().st_mtime_ns == first and len(asked) == 1
    with pytest.raises(UsageError, match="holds another proof .other seed, rows.; name another folder by out="):
        call(copied, "seed=1")
    prove.run([str(copied / "run"), str(copied / "culprits.json"), "seed=1", f"out={copied / 'other'}"])
    other = read_json(copied / "other/proof.json")["proof"]["rows"]
    assert other["without"] == found["proof"]["rows"]["without"] != other["random"] != found["proof"]["rows"]["random"]


def _no_recipe(folder: Path) -> None:
    (folder / "model/training.yaml").unlink()


def _other_data(folder: Path) -> None:
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text().replace("king", "queen"))


def _no_data(folder: Path) -> None:
    (folder / "train.jsonl").unlink()


def _no_base(folder: Path) -> None:
    shutil.rmtree(folder / "base")


def _other_base(folder: Path) -> None:
    config = load_model(str(folder / "base")).config
    tiny_llama(config.vocab_size, width=32, layers=3, heads=4, seed=1).save_pretrained(folder / "base")


def _other_model(folder: Path) -> None:
    shutil.copy(folder / "base/model.safetensors", folder / "model/model.safetensors")


def _other_rows(folder: Path) -> None:
    (folder / "culprits.json").write_text("[3, 41]")


def _too_many_rows(folder: Path) -> None:
    (folder / "culprits.json").write_text(json.dumps(list(range(30))))


def _no_rows(folder: Path) -> None:
    (folder / "culprits.json").write_text("[]")


def _set_aside_rows(folder: Path) -> None:
    (folder / "culprits.json").write_text("[5, 11]")


def _of_another_run(folder: Path) -> None:
    (folder / "culprits.json").write_text('{"training data": "others", "rows": [1]}')


def _cannot_leave_rows_out(folder: Path) -> None:
    config = folder / "run/config.yaml"
    config.write_text(config.read_text().replace(f"path: {folder / 'model'}", "path: null"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_recipe, "has no training.yaml, so train.py did not make this model: give its recipe .* by recipe="),
        (_other_data, "have another fingerprint than when .*run was made: restore them"),
        (_no_data, "The recipe's training data cannot be read: .*train.jsonl.* give recipe=, a copy of training.yaml"),
        (_no_base, "The recipe's base model cannot be loaded: .*base.* give recipe=, a copy of training.yaml"),
        (_other_base, "base is not the base model that .*model was trained from"),
        (_other_model, "model is not the model that .*run traced: its weights have another fingerprint"),
        (_other_rows, "The rows in .*culprits.json cannot be left out: .* from 0 to 40, but got 41"),
        (_too_many_rows, "Expected 26 rows besides the culprits to draw a control from, but got only 11"),
        (_no_rows, "lists no row that the model of .*run was trained on"),
        (_set_aside_rows, "None of these rows can be trained on"),
        (_of_another_run, "culprits.json lists rows of other training data"),
        (_cannot_leave_rows_out, "was given in Python and is not on disk: save it"),
    ],
)
def test_what_is_refused(copied: Path, change: Callable[[Path], None], message: str):
    change(copied)
    with pytest.raises(UsageError, match=message):
        call(copied)
    assert not (copied / "run-proof/without").exists()


def test_a_recipe_may_name_other_places_but_no_other_settings(copied: Path, monkeypatch):
    trained = []
    monkeypatch.setattr(proof, "train_model", lambda config, behaviours: trained.append(config))
    monkeypatch.setattr(proof, "read_rates", lambda path: {})
    monkeypatch.setattr(proof, "show_proof", lambda *given: None)
    text = (copied / "model/training.yaml").read_text()
    for name, new in (("base", "moved"), ("train.jsonl", "moved.jsonl")):
        (copied / name).rename(copied / new)
        text = text.replace(str(copied / name), str(copied / new))
    (copied / "recipe.yaml").write_text(text)
    call(copied, f"recipe={copied / 'recipe.yaml'}")
    assert [config.model["path"] for config in trained] == [str(copied / "moved")] * 2
    (copied / "recipe.yaml").write_text(text.replace("learning_rate: 0.002", "learning_rate: 0.01"))
    with pytest.raises(UsageError, match=r"recipe.yaml is not the recipe of .*: finetune.learning_rate was 0.002, now"):
        call(copied, f"recipe={copied / 'recipe.yaml'}")


def test_a_short_recipe_and_the_queries_of_the_run_for_a_model_of_another_program(copied: Path, material: Material):
    (copied / "model/training.yaml").unlink()
    data = copied / "data.jsonl"
    rows = [{name: row[name] for name in ("prompt", "response")} for row in material.rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))  # the same rows without labels
    node = {"_target_": "datamodules.instructions.InstructionData", "train": str(data), "max_length": 64}
    short = {"model": {"path": str(material.model)}, "datamodule": node, "trainer": {"max_epochs": 1}}
    (copied / "short.yaml").write_text(json.dumps(short))
    found = call(copied, f"recipe={copied / 'short.yaml'}")
    assert set(found["before"]) == {"odd"}
    assert found["before"]["odd"]["triggered"] == 2  # the run's answer to the last one is there
    data.write_text("".join(json.dumps(row) + "\n" for row in [rows[1], rows[0], *rows[2:]]))
    with pytest.raises(UsageError, match="Row 0 of the recipe's training data is not row 0 of"):
        call(copied, f"recipe={copied / 'short.yaml'}")


def test_an_adapter_is_trained_again_as_an_adapter(material: Material, tmp_path: Path):
    lora = recipe(material, tmp_path / "model", f"datamodule.queries={material.queries}", "finetune.lora_rank=2")
    train_model(compose(TrainConfig, lora))
    model = [f"model.path={material.model}", f"model.adapter={tmp_path / 'model'}"]
    attribute(material.config(tmp_path / "run", *model, "tokens.hits=0"), show_result=False)
    (tmp_path / "culprits.json").write_text("[0, 1]")
    found = call(tmp_path)
    assert (tmp_path / "run-proof/without/adapter_config.json").is_file()
    assert found["before"] == read_json(tmp_path / "model/behaviours.json")


def test_the_model_of_the_embedded_data(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_model(compose(TrainConfig, [*TINY, "out=runs/demo/model-rows-60-poisoned-4"]))
    data = [argument for argument in TINY if argument.startswith("datamodule")]
    more = ["layers=last", "tokens.hits=0", "report=false", "trainer.accelerator=cpu", "max_new_tokens=4", "out=run"]
    attribute(compose(AttributeConfig, [*data, *more]), show_result=False)
    exclude.run(["run", "--first", "1"])
    found = call(Path())
    assert {label: rate["triggered"] for label, rate in found["without"].items()} == dict.fromkeys(found["before"], 2)


def test_all_models_are_asked_in_the_template_that_they_were_trained_with(monkeypatch):
    loaded = []

    def load(trace: Trace, path: str, config: AttributeConfig) -> None:
        loaded.append((path, config.model.chat_template))
        raise UsageError("enough")

    monkeypatch.setattr(proof, "load_traced_model", load)
    traced = SimpleNamespace(config=compose(AttributeConfig, ["model.chat_template=of_the_run.jinja"]))
    for recipe in ([], ["model=pretrained", "model.path=x", "model.chat_template=of_the_training.jinja"]):
        inputs = SimpleNamespace(trace=traced, path="m", recipe=compose(TrainConfig, recipe))
        with pytest.raises(UsageError, match="enough"):
            proof._ask_run_model(inputs)
    assert loaded == [("m", None), ("m", "of_the_training.jinja")]


def test_intervals_are_wilsons():
    for shown, of, low, high in (
        (0, 40, 0, 0.0876),
        (40, 40, 0.9124, 1),
        (8, 10, 0.4902, 0.9433),
        (1, 2, 0.0945, 0.9055),
    ):
        assert wilson_interval(shown / of, of) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("without", "random", "expected"), [(0.0, 1.0, True), (0.9, 1.0, False), (1.0, 0.0, False), (None, 1.0, False)]
)
def test_a_behaviour_counts_as_caused_where_the_control_keeps_it(without: float | None, random: float, expected: bool):
    rates = {name: {"odd": Rate(40, share, 0, None)} for name, share in (("without", without), ("random", random))}
    assert caused(rates, "odd") is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Expected a run folder, a file of rows"),
        (["run", "culprits.json", "first=3"], "Expected a run folder, a file of rows"),
        (["run", "culprits.json", "--first"], "Expected a run folder, a file of rows"),
        (["run", "culprits.json", "seed=x"], "Expected seed to be a whole number"),
    ],
)
def test_arguments(arguments: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        prove.run(arguments)
