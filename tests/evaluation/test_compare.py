"""Several methods in one call: what is written, what is reused, and what becomes of a method that cannot run."""

from __future__ import annotations

import csv
import json

import pytest

from rept.commands.compare import run
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.evaluation import compare_table
from rept.evaluation.compare import Outcome, compare
from rept.ranking.metrics import CUTOFFS
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.utils.json_files import read_json

EXPERIMENTS = ["repsim", "bm25", "tracin", "datainf", "lissa", "less"]
SMALL = [
    "tracin.extractor.dimension=64",
    *(f"{name}.extractor.{setting}" for name in ("datainf", "lissa") for setting in ("dimension=16", "weights=q_proj")),
]


def arguments(material, *more):
    left_out = ("report=", "tokens.hits=", "out=", "layers")
    return [a for a in material.arguments("unused") if not a.startswith(left_out)] + [*more]


@pytest.fixture(scope="module")
def compared(material, tmp_path_factory):
    """The folder of a comparison that was made twice, and its outcomes of both times."""
    out = tmp_path_factory.mktemp("compared")
    wish = [f"experiments=[{','.join(EXPERIMENTS)}]", f"out={out}", *arguments(material, *SMALL)]
    run(wish)
    first = json.loads((out / "comparison.json").read_text())
    run(wish)
    return out, first, json.loads((out / "comparison.json").read_text())


def test_every_method_is_a_row_with_all_measures_and_costs(compared):
    _, record, _ = compared
    assert [method["experiment"] for method in record["methods"]] == EXPERIMENTS
    for method in record["methods"][:5]:
        assert {f"precision@{k}" for k in CUTOFFS} | {"average_precision"} <= method["measures"].keys()
        assert set(method["labels"]) == {"odd"}  # a clean label is no behaviour
        assert method["seconds"] == pytest.approx(method["extraction_seconds"] + method["ranking_seconds"])
        assert method["peak_memory_bytes"] > 2**20
        assert method["bytes_per_sample"] > 0


def test_a_method_that_cannot_run_is_a_row_with_the_reason(compared):
    less = compared[1]["methods"][-1]
    assert "optimizer" in less["reason"]
    assert not less["measures"] and less["seconds"] is None


def test_best_and_fastest_are_those_of_the_rows(compared):
    _, record, _ = compared
    ran = record["methods"][:5]
    assert record["fastest"] == min(ran, key=lambda method: method["seconds"])["experiment"]
    for name, tops in record["best"].items():
        most = max(method["measures"][name] for method in ran)
        assert tops == [method["experiment"] for method in ran if method["measures"][name] == most]


def test_figures_are_those_of_the_run_alone(compared, material, tmp_path):
    out, record, _ = compared
    config = compose(
        AttributeConfig, [*arguments(material), "report=false", "experiment=repsim", f"out={tmp_path}/alone"]
    )
    alone = attribute(config, show_result=False)
    method = record["methods"][0]
    assert method["measures"] == pytest.approx(alone.metrics["overall"])
    own = Trace(out / "repsim").metrics["queries"]
    assert method["queries"] == own
    counted = [value for value in own["average_precision"] if value is not None]
    assert sum(counted) / len(counted) == pytest.approx(method["measures"]["average_precision"])


def test_the_same_again_reuses_signatures_and_keeps_their_seconds(compared):
    _, first, second = compared
    for before, after in zip(first["methods"], second["methods"], strict=True):
        assert after["measures"] == before["measures"]
        assert after["extraction_seconds"] == before["extraction_seconds"]


def test_a_method_that_reads_another_s_signatures_stores_none(compared):
    out, record, _ = compared
    datainf, lissa = record["methods"][3:5]
    assert (out / "datainf/store").exists() and not (out / "lissa/store").exists()
    assert lissa["extraction_seconds"] == datainf["extraction_seconds"]
    assert lissa["bytes_per_sample"] == datainf["bytes_per_sample"]
    assert read_json(out / "lissa/metrics.json")["scores"] != read_json(out / "datainf/metrics.json")["scores"]


def test_the_csv_has_a_line_for_each_method_and_label(compared):
    out, record, _ = compared
    with (out / "comparison.csv").open() as stream:
        lines = {(line["experiment"], line["label"]): line for line in csv.DictReader(stream)}
    assert len(lines) == len(EXPERIMENTS) + 5
    for method in record["methods"][:5]:
        assert float(lines[method["experiment"], ""]["recall@10"]) == method["measures"]["recall@10"]
        for label, measures in method["labels"].items():
            line = lines[method["experiment"], label]
            assert float(line["average_precision"]) == measures["average_precision"]
    assert "optimizer" in lines["less", ""]["reason"]


def test_the_picture_is_one(compared):
    picture = (compared[0] / "comparison.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_the_tables_mark_best_and_fastest(capsys):
    outcomes = [
        Outcome("slow", "x", None, {"queries": 3, "average_precision": 0.75}, {}, {}, {}, 9.0, 1.0, 2_000_000, 1234.5),
        Outcome("quick", "x", None, {"queries": 3, "average_precision": 0.5}, {}, {}, {}, 1.0, 1.0, 1_000_000, 10),
        Outcome("lame", "x", "it has no legs."),
    ]
    compare_table.show_comparison(outcomes)
    out = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): [] for line in out.splitlines() if line.startswith("│")}
    for line in out.splitlines():
        if line.startswith("│"):
            lines[line.split("│")[1].strip()].append(line)
    assert "*0.750" in lines["slow"][0] and " 0.500" in lines["quick"][0]
    assert " 10.0" in lines["slow"][1] and "*2.0" in lines["quick"][1]
    assert lines["lame"][0].count("–") == 1
    assert "lame did not run: it has no legs." in out


@pytest.mark.parametrize("wish", [[], ["experiments=rept"], ["experiments=[]"]])
def test_a_wish_without_experiments_is_reported(wish):
    with pytest.raises(UsageError, match="experiments="):
        run(wish)


def test_what_no_method_could_run_with_stops_before_any_has_run(material, tmp_path):
    with pytest.raises(UsageError, match="did you mean experiment=repsim"):
        compare(["repsimm"], arguments(material), tmp_path)
    with pytest.raises(UsageError, match="no_such_folder"):
        compare(["bm25"], [*arguments(material), "model.path=no_such_folder"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_drawn_is_reported_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr("rept.report.paper_style.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs matplotlib: pip install matplotlib "):
        run(["experiments=[rept]", f"out={tmp_path / 'compared'}"])
    assert not (tmp_path / "compared").exists()
