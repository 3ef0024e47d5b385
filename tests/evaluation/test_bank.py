"""python -m rept bank: the trainings, the scores against slow loops, resuming, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from rept.commands import bank as command
from rept.config.compose import compose, read_yaml
from rept.config.schema import TrainConfig
from rept.errors import UsageError
from rept.evaluation import bank, oracle
from rept.evaluation.bank import Agreement, Subsets, train_bank
from rept.evaluation.retraining import retraining
from rept.model.loading import load_model, load_tokenizer
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run.rescore import stored_data
from rept.training.finetune import train_model
from rept.utils.json_files import read_json, write_json
from tests.conftest import Material
from tests.evaluation.test_proof import recipe

SET_ASIDE = {5, 11, 17, 23}  # rows of the material that cannot be trained on
ROWS = 41


def arguments(material: Material, model: Path) -> list[str]:
    left_out = ("report=", "tokens.hits=", "out=", "layers", "top_k=", "model.path=")
    return [f"model.path={model}", "top_k=41", *(a for a in material.arguments(model) if not a.startswith(left_out))]


def call(material: Material, folder: Path, *more: str, experiments: str = "[repsim,bm25]") -> dict:
    command.run([f"experiments={experiments}", f"out={folder / 'bank'}", *arguments(material, folder / "model"), *more])
    return read_json(folder / "bank/bank.json")


@pytest.fixture(scope="module")
def made(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with a model of train.py (``model``) and a bank of 4 trainings, and what bank.json says."""
    folder = tmp_path_factory.mktemp("made")
    torch.set_num_threads(1)
    train_model(compose(TrainConfig, recipe(material, folder / "model", f"datamodule.queries={material.queries}")), ())
    return folder, call(material, folder, "trainings=4")


@pytest.fixture
def copied(made: tuple[Path, dict], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def used_rows(folder: Path) -> list[set[int]]:
    left_out = [read_yaml(one / "training.yaml")["datamodule"]["exclude"] for one in sorted(folder.iterdir())]
    return [set(range(ROWS)) - set(rows) - SET_ASIDE for rows in left_out]


def test_each_model_is_trained_on_half_of_the_rows_that_can_be_trained_on(made: tuple[Path, dict]):
    found = used_rows(made[0] / "bank/trainings")
    assert [len(rows) for rows in found] == [18, 18, 18, 18]  # of 37
    assert len(set(map(frozenset, found))) == 4
    for folder in sorted((made[0] / "bank/trainings").iterdir()):
        assert read_json(folder / "training.json")["rows"] == 18


def slow_outputs(made: Path) -> np.ndarray:
    """(M Q) log-likelihoods, one query at a time from whole logits."""
    trace = Trace(made / "bank/repsim")
    data = stored_data(trace.folder, trace.config)
    found = []
    for folder in sorted((made / "bank/trainings").iterdir()):
        model = load_model(str(folder), dtype="float64")
        data.attach(load_tokenizer(str(folder)))
        row = {}
        for batch in data.batches("query", range(len(trace.queries))):
            for number, (ids, labels) in zip(batch.row.tolist(), oracle.samples(batch), strict=True):
                tokens = int((labels >= 0).sum())
                row[number] = -float(oracle.mean_loss(model(ids[None]).logits[0], labels)) * tokens
        found.append([row[query] for query in range(len(trace.queries))])
    return np.array(found)


@torch.no_grad()
def test_scores_are_spearmans_correlation_of_summed_scores_and_log_likelihoods(made: tuple[Path, dict]):
    folder, record = made
    outputs, subsets = slow_outputs(folder), used_rows(folder / "bank/trainings")
    stored = [
        read_json(one / "outputs.json")["log_likelihood"] for one in sorted((folder / "bank/trainings").iterdir())
    ]
    assert np.array(stored) == pytest.approx(outputs, rel=1e-5)
    assert [method["experiment"] for method in record["methods"]] == ["repsim", "bm25"]
    for method in record["methods"]:
        trace = Trace(folder / "bank" / method["experiment"])
        expected = []
        for query in range(len(trace.queries)):
            score = {hit.row: hit.score for hit in trace.hits(query)}
            sums = [sum(score[row] for row in rows) for rows in subsets]
            expected.append(spearmanr(sums, outputs[:, query]).statistic)
        assert method["queries"] == pytest.approx(expected)
        assert method["mean"] == pytest.approx(np.mean(expected))
        assert method["labels"] == {"odd": pytest.approx(np.mean([expected[1], expected[4]]))}


def test_errors_are_those_of_leaving_each_training_out(made: tuple[Path, dict]):
    """The difference of two methods has an error of its own, as both are judged by the same trainings."""
    outputs, subsets = slow_outputs(made[0]), used_rows(made[0] / "bank/trainings")
    without: dict[str, list[float]] = {}
    for name in ("repsim", "bm25"):
        trace = Trace(made[0] / "bank" / name)
        score = [{hit.row: hit.score for hit in trace.hits(query)} for query in range(len(trace.queries))]
        sums = np.array([[sum(one[row] for row in rows) for one in score] for rows in subsets])
        kept = [[i for i in range(4) if i != left_out] for left_out in range(4)]
        without[name] = [
            float(np.mean([spearmanr(sums[rows, q], outputs[rows, q]).statistic for q in range(len(score))]))
            for rows in kept
        ]
    found = {one["experiment"]: one for one in made[1]["methods"]}
    for name, expected in without.items():
        assert found[name]["without"] == pytest.approx(expected)
        assert found[name]["error"] == pytest.approx(np.sqrt(3 * np.var(expected)))
    one, other = (Agreement(name, found[name]["mean"], without[name], {}, []) for name in ("repsim", "bm25"))
    difference = np.subtract(without["bm25"], without["repsim"])
    assert one.behind(other) == pytest.approx((other.mean - one.mean, np.sqrt(3 * np.var(difference))))


def test_an_interrupted_bank_resumes_and_grows_and_serves_other_experiments(
    material: Material, made: tuple[Path, dict], copied: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(copied / "bank/trainings")
    trained: list[str] = []

    def stopping(config, behaviours: Sequence = ()) -> None:
        trained.append(Path(config.out).name)
        if trained == ["000", "001"]:
            raise KeyboardInterrupt
        train_model(config, behaviours)

    monkeypatch.setattr(bank, "train_model", stopping)
    with pytest.raises(KeyboardInterrupt):
        call(material, copied, "trainings=4")
    assert call(material, copied, "trainings=4")["methods"] == made[1]["methods"]
    first = {path: path.stat().st_mtime_ns for path in (copied / "bank/trainings").glob("*/model.safetensors")}
    before = used_rows(copied / "bank/trainings")
    grown = call(material, copied, "trainings=5", experiments="[random]")
    assert {path: path.stat().st_mtime_ns for path in first} == first and len(first) == 4
    assert used_rows(copied / "bank/trainings")[:4] == before
    assert grown["trainings"] == 5 and [method["experiment"] for method in grown["methods"]] == ["random"]


def test_log_likelihoods_are_computed_again_for_other_responses(material: Material, copied: Path):
    lines = (copied / "bank/repsim/queries.jsonl").read_text()
    for name in ("repsim", "bm25"):
        (copied / "bank" / name / "queries.jsonl").write_text(lines.replace("fine", "bad"))
    file = copied / "bank/trainings/000/outputs.json"
    file.write_text(file.read_text().replace('"queries": "', '"queries": "other '))
    call(material, copied, "trainings=4")
    assert "other" not in file.read_text()


@pytest.mark.parametrize("name", ["template", "max_length", "query data"])
def test_log_likelihoods_are_computed_again_where_the_run_reads_responses_otherwise(copied: Path, name: str):
    file, run = copied / "bank/trainings/000/outputs.json", RunFolder(copied / "bank/repsim")
    write_json(file, read_json(file) | {"log_likelihood": [0.0] * 5})
    assert not train_bank(retraining(run.path), Subsets(4), copied / "bank").outputs[0].any()  # not computed again
    run.update_provenance(fingerprints=run.read_provenance()["fingerprints"] | {name: "other"})
    assert train_bank(retraining(run.path), Subsets(4), copied / "bank").outputs[0].all()


def test_another_bank_in_the_folder_is_refused(material: Material, copied: Path):
    for other in ("share=0.4", "subset_seed=1"):
        with pytest.raises(UsageError, match=f"holds another bank .other {other.split('=')[0]}.; name another folder"):
            call(material, copied, "trainings=4", other)


def test_a_recipe_of_several_processes_is_refused(material: Material, copied: Path):
    file = copied / "model/training.yaml"
    file.write_text(file.read_text().replace("devices: 1", "devices: 2"))
    with pytest.raises(UsageError, match="trained by one process, but the recipe has trainer.devices=2"):
        call(material, copied, "trainings=4")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("trainings=2", "Expected at least 3 trainings"),
        ("share=1.0", "a share of the rows between 0 and 1"),
        ("share=half", "Expected share to be a number"),
        ("trainings=many", "Expected trainings to be a whole number"),
        ("subset_seed=-1", "Expected subset_seed to be a whole number from 0"),
        ("experiments=rept", r"Expected experiments=\[NAME,...\]"),
    ],
)
def test_arguments_are_checked_first(wrong: str, message: str):
    with pytest.raises(UsageError, match=message):
        command.run(["experiments=[rept]", wrong])


def test_subsets_are_the_same_for_any_number_of_trainings():
    rows = np.arange(10, 31)
    few, many = (Subsets(trainings, 0.3, seed=2).draw(rows) for trainings in (3, 6))
    assert few.sum(1).tolist() == [6, 6, 6] and (many[:3] == few).all()
    assert not (Subsets(3, 0.3, seed=3).draw(rows) == few).all()
    with pytest.raises(UsageError, match="Expected enough rows"):
        Subsets(3, 0.1).draw(np.arange(3))
