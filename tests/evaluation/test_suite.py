"""The suite: trains once for what is the same, gathers each case's figures, and marks what cannot be measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rept.commands.compare import run
from rept.config.compose import compose
from rept.config.schema import AttributeConfig, TrainConfig
from rept.config.words import CONFIGS
from rept.data.behaviours import Behaviour
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation import suite_table
from rept.evaluation.case_figures import CaseFigures, bootstrap, by_behaviour, mean_of_cases
from rept.evaluation.suite import Suite, _digest, run_suite
from rept.results.trace import Trace

HERE = f"{__name__}.Tiny"


class Tiny(AttributionDataModule):
    """Rows of two cases, one in two parts, and of none; every answer shows its behaviour, that without rows too."""

    def __init__(self, stage: str = "cases", seed: int = 0, answered: str | None = None) -> None:
        super().__init__(max_length=48)
        labels = ["easy", "hard:1", "hard:2", "clean"] if stage == "cases" else ["clean"]
        self.rows = [self._sample(f"{stage} {seed} {i}", labels[i % len(labels)]) for i in range(24)]
        self.asked = {label: [self._sample(f"ask {i}", label) for i in range(3)] for label in [*labels[:-1], "absent"]}
        self.answered = answered

    @staticmethod
    def _sample(text: str, label: str) -> Sample:
        return Sample(({"role": "user", "content": f"{label} {text}"},), f"{label} it is", label)

    def source(self, side):
        return self.rows if side == "train" else [sample for asked in self.asked.values() for sample in asked]

    def behaviours(self):
        asked = {label: [replace(s, response=None) for s in samples] for label, samples in self.asked.items()}
        return [Behaviour(label, samples, (), lambda _, answer: True) for label, samples in asked.items()]


def tiny(**changed) -> Suite:
    shape = ["model.width=16", "model.layers=2", "model.heads=2", "model.vocab_size=280", "trainer.accelerator=cpu"]
    data = [f"datamodule._target_={HERE}", "trainer.max_epochs=1"]
    methods = ["repsim", "bm25", "less", "datainf", "contrastive"]
    made = Suite(methods, [0, 1], shape, [*data, "datamodule.stage=base"], data)
    return replace(made, **changed)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    return (out, *run_suite(tiny(), ["trainer.accelerator=cpu", "less.extractor.dimension=32"], out))


def test_cases_have_the_average_precisions_of_their_labels(done):
    out, cases, _ = done
    for method in ("repsim", "bm25", "less"):
        for number in (0, 1):
            labels = Trace(out / f"seed-{number}" / method).metrics["labels"]
            assert np.mean(cases["easy"].found[method][number]) == pytest.approx(labels["easy"]["average_precision"])
            parts = [labels[f"hard:{part}"]["average_precision"] for part in (1, 2)]
            assert len(cases["hard"].found[method][number]) == 6
            assert np.mean(cases["hard"].found[method][number]) == pytest.approx(np.mean(parts))


def test_an_absent_cause_is_counted_and_not_measured(done):
    _, cases, _ = done
    assert (cases["absent"].asked, cases["absent"].shown) == (6, 6)
    assert cases["absent"].interval("bm25") is None
    assert (cases["hard"].asked, cases["hard"].shown) == (12, 12)


def test_a_method_that_cannot_run_has_a_reason_in_every_seed(done):
    _, cases, outcomes = done
    reasons = [outcome.reason for outcome in outcomes if outcome.experiment == "datainf"]
    assert len(reasons) == 2 and all("LoRA" in reason for reason in reasons)
    assert "datainf" not in cases["easy"].found


def test_less_reads_the_optimizer_state_of_the_model_that_was_trained(done):
    outcomes = done[2]
    assert [outcome.reason for outcome in outcomes if outcome.experiment == "less"] == [None, None]


def test_contrastive_reads_the_model_that_the_training_started_from(done):
    out, _, outcomes = done
    found = [outcome for outcome in outcomes if outcome.experiment == "contrastive"]
    assert [outcome.reason for outcome in found] == [None, None]
    for outcome in found:
        base = Trace(outcome.folder).config.extractor["base"]
        assert "stage: base" in (out / "models" / Path(base).name / "training.yaml").read_text()


def test_the_base_is_trained_once_and_everything_is_reused(done):
    out, cases, _ = done
    weights = {path: path.stat().st_mtime_ns for path in out.glob("models/*/model.safetensors")}
    assert len(weights) == 3  # the base, and one for each seed
    again, _ = run_suite(tiny(), ["trainer.accelerator=cpu", "less.extractor.dimension=32"], out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("models/*/model.safetensors")} == weights
    assert again == cases


def test_a_suite_resumes_where_it_was_moved_to(done, tmp_path):
    moved = shutil.copytree(done[0], tmp_path / "moved", copy_function=shutil.copy2)
    weights = {path: path.stat().st_mtime_ns for path in moved.glob("models/*/model.safetensors")}
    cases, _ = run_suite(tiny(experiments=["bm25"]), ["trainer.accelerator=cpu"], moved)
    assert {path: path.stat().st_mtime_ns for path in moved.glob("models/*/model.safetensors")} == weights
    assert cases["easy"].found["bm25"] == done[1]["easy"].found["bm25"]


def test_another_recipe_trains_again(done):
    out = done[0]
    before = set(out.glob("models/*"))
    other = tiny(experiments=["bm25"], seeds=[0], train=[*tiny().train, "finetune.learning_rate=1.0e-4"])
    run_suite(other, ["trainer.accelerator=cpu"], out.parent / "other")
    after = {path.name for path in (out.parent / "other/models").iterdir()}
    assert len(after) == 2 and len(after - {path.name for path in before}) == 1  # the base's recipe is the same


def test_a_recipe_has_the_same_name_wherever_it_lies(tmp_path):
    node = ["model=pretrained", *tiny().train]
    names = [
        _digest(compose(TrainConfig, [*node, f"model.path={tmp_path}/{where}/b1", "out=x"])) for where in ("a", "b")
    ]
    assert names[0] == names[1] != _digest(compose(TrainConfig, [*node, f"model.path={tmp_path}/a/b2", "out=x"]))


def test_the_table_marks_the_best_and_shows_the_interval(capsys, tmp_path):
    figures = CaseFigures(4, 3, {"a": {0: [1.0, 0.5, 0.75]}, "b": {0: [0.25, 0.25, 0.25]}})
    cases = {"easy": figures, "absent": CaseFigures(8, 8)}
    suite = tiny(experiments=["a", "b"], seeds=[0])
    suite_table.show_suite(cases, suite)
    line, difference = (line for line in capsys.readouterr().out.splitlines() if "easy" in line)
    assert "3/4" in line and "*0.75 [" in line and " 0.25 [0.25, 0.25]" in line
    assert "-0.50 [-0.75, -0.25]" in difference
    suite_table.write_suite(cases, suite, tmp_path)
    first, second = (tmp_path / "suite.md").read_text().split("\n\n", 1)
    assert first.splitlines()[-2] == "| absent | 8/8 | – | – |" and second.splitlines()[-2] == "| absent | 8/8 | – |"
    record = json.loads((tmp_path / "suite.json").read_text())
    assert record["cases"]["easy"]["average_precision"]["b"] == [0.25, 0.25, 0.25]
    assert record["cases"]["easy"]["difference"]["a"] == [0, 0, 0] and record["reference"] == "a"
    assert record["cases"]["absent"]["average_precision"] == {"a": None, "b": None}
    assert record["mean_of_cases"]["average_precision"]["b"] == [0.25, 0.25, 0.25]


def test_behaviours_count_with_each_of_their_queries(done):
    out, cases, _ = done
    for number in (0, 1):
        metrics = Trace(out / f"seed-{number}" / "repsim").metrics["behaviours"]
        assert cases["easy"].found[by_behaviour("repsim")][number] == [metrics["easy"]["average_precision"]] * 3
        expected = [metrics[f"hard:{part}"]["average_precision"] for part in (1, 2) for _ in range(3)]
        assert sorted(cases["hard"].found[by_behaviour("repsim")][number]) == sorted(expected)


def test_differences_are_paired_by_query_and_seed():
    rng = np.random.default_rng(0)
    hard = {seed: rng.uniform(0, 0.9, size=20) for seed in range(4)}
    found = {
        "a": {seed: list(values + 0.05) for seed, values in hard.items()},
        "b": {seed: list(values) for seed, values in hard.items()},
    }
    case = CaseFigures(found=found)
    mean, low, high = case.interval("a", "b")
    assert mean == pytest.approx(0.05) and low == pytest.approx(0.05) and high == pytest.approx(0.05)
    one, other = case.interval("a"), case.interval("b")
    assert one[1] < other[2]  # the separate intervals overlap
    del found["b"][3]
    assert case.differences("a", "b").keys() == {0, 1, 2}


def test_the_mean_of_cases_gives_each_case_the_same_weight():
    cases = [
        CaseFigures(found={"a": {0: [1.0] * 30, 1: [0.8] * 10}}),
        CaseFigures(found={"a": {1: [0.2]}}),
        CaseFigures(8, 8),
    ]
    mean, low, high = mean_of_cases(cases, "a")
    assert mean == pytest.approx((0.95 + 0.2) / 2)
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)  # draws of seed 1 alone, and of seed 0 alone


def test_bootstrap_covers_the_mean_and_narrows_with_more_queries():
    rng = np.random.default_rng(1)
    few, many = (bootstrap([{0: rng.uniform(size=n)}]) for n in (10, 1000))
    for mean, low, high in (few, many):
        assert low < mean < high
    assert many[2] - many[1] < 0.3 * (few[2] - few[1])
    # The standard error of a uniform mean is 1 / sqrt(12 n), and a 95 % interval is 3.92 of them.
    assert many[2] - many[1] == pytest.approx(3.92 / np.sqrt(12 * 1000), rel=0.15)


def test_seeds_that_disagree_widen_the_interval():
    pooled = bootstrap([{0: [0.2] * 20 + [0.8] * 20}])
    apart = bootstrap([{0: [0.2] * 20, 1: [0.8] * 20}])
    assert apart[0] == pytest.approx(pooled[0])
    assert apart[2] - apart[1] > 1.5 * (pooled[2] - pooled[1])


def test_nothing_measured_has_no_interval():
    assert bootstrap([]) is None and bootstrap([{}, {0: []}]) is None


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml")))
def test_every_suite_composes(name):
    suite = Suite.named(name)
    compose(TrainConfig, [*suite.model, *suite.base])
    compose(TrainConfig, ["model=pretrained", "model.path=x", *suite.train])
    for experiment in suite.experiments:
        compose(AttributeConfig, [f"experiment={experiment}"])


def test_wrong_wishes_are_reported():
    with pytest.raises(UsageError, match="Choices: full, hard"):
        run(["suite=hardd"])
    with pytest.raises(UsageError, match="seeds to be a list"):
        run(["suite=hard", "seeds=3"])
