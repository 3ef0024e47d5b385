"""The parts of the report: shades, words, findings, plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rept.report import overview, plot_data
from rept.report.charts import svg
from rept.report.findings import Findings
from rept.report.page import render
from rept.report.plot_data import Bars, Line
from rept.results.records import TokenScores
from rept.results.shading import excerpt, level, scale, shaded, strongest_words
from rept.results.trace import Trace
from tests.helpers.runs import Shape, write_run


def _scored(*tokens: tuple[str, float] | tuple[str, float, bool]) -> TokenScores:
    given = [(*token, False)[:3] for token in tokens]
    texts, scores, special = ([token[i] for token in given] for i in range(3))
    return TokenScores(0, 0, "train", texts, scores, special, 1, "anchored", [[] for _ in given])


def test_a_shade_is_linear_up_to_the_largest_score_of_a_token_that_is_not_special() -> None:
    scored = _scored(("<s>", 90.0, True), ("a", 4.0), (" b", -2.0), (" c", 0.2))
    assert scale(scored) == 4.0
    assert [piece.level for piece in shaded(scored)] == [8, 8, -4, 0]
    assert [level(score, 4.0) for score in (-9, -4, 0, 1, 2, 9)] == [-8, -8, 0, 2, 4, 8]
    assert scale(_scored(("a", 0.0))) == 1.0


def test_further_bytes_of_a_character_are_shaded_with_it() -> None:
    pieces = shaded(_scored(("a", 1.0), ("🙂", 0.5), ("", -2.0), ("", 1.0)))
    assert [(piece.text, piece.score) for piece in pieces] == [("a", 1.0), ("🙂", -2.0)]


def test_an_excerpt_holds_the_strongest_passage() -> None:
    weak = [(f" weak{i}", 1.0) for i in range(100)]  # eight of them outweigh the strong two in sum
    scored = _scored(("<s>", 0, True), *weak[:70], (" blue", 3.0), (" lantern", 2.0), *weak[70:])
    pieces, before, after = excerpt(scored, 60)
    text = "".join(piece.text for piece in pieces)
    assert "blue lantern" in text and len(text) <= 60 and before and after
    assert text[0] == " " and "<s>" not in text


def test_an_excerpt_of_a_short_text_is_all_of_it() -> None:
    scored = _scored(("<u>", 0, True), ("Ask", -1.0), ("<a>", 0, True), ("Say", -1.0), ("</s>", 9, True))
    pieces, before, after = excerpt(scored)
    assert ("".join(piece.text for piece in pieces), before, after) == ("Ask → Say", False, False)


def test_words_are_put_together_from_their_tokens() -> None:
    start, end = (("<u>", 9, True), ("Blue", 1.0)), ((" blue", 2.0), (" no", -1.0), (" .", 4))
    scored = _scored(*start, (" lan", 0.5), ("tern!", 3.0), *end)
    assert strongest_words(scored) == ["lantern", "blue"]


def test_findings_count_what_is_in_the_results(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=9, hits=12, rows=15)))
    found = Findings(trace)
    own = [query for query in trace.queries if trace.hits(query["query"])[0].label == query["label"]]
    assert found.headline.startswith(f"{len(own)} of 9 queries lead straight")
    assert sum(behaviour.matched for behaviour in found.behaviours) == len(own)
    first = [hit for query in range(9) for hit in trace.hits(query)[:10]]
    counts = [sum(hit.row == culprit.hit.row for hit in first) for culprit in found.culprits]
    assert counts == [culprit.count for culprit in found.culprits] == sorted(counts, reverse=True)
    assert found.rows_found == len({hit.row for hit in first})
    for behaviour in found.behaviours:
        assert behaviour.hit == trace.hits(behaviour.example["query"])[0]
        assert behaviour.hit.label == behaviour.label or not behaviour.matched


def test_precision_by_k_is_that_of_the_hits(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(hits=7)))
    plot = plot_data.precision_by_k(trace)
    assert plot is not None
    overall = plot.lines[-1]
    for k in range(1, 8):
        by_query = [np.mean([hit.label == q["label"] for hit in trace.hits(q["query"])[:k]]) for q in trace.queries]
        assert overall.points[k - 1] == (k, pytest.approx(np.mean(by_query)))
    assert [(line.label, line.role) for line in plot.lines] == [
        ("backdoor", "secondary"),
        ("false_fact", "secondary"),
        ("overall", "main"),
    ]


def test_the_histogram_counts_every_score_and_the_tail(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(queries=8))
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {"low": 0.25, "width": 1 / 128, "counts": [3] * 96}
    (run / "metrics.json").write_text(json.dumps(metrics | {"scores": scores}))
    plot = plot_data.score_histogram(Trace(run))
    assert plot is not None and plot.bars is not None
    bars = plot.bars
    assert (sum(bars.counts), sum(bars.tail), bars.tail_label) == (288, 8, "best hit of each query")
    assert bars.low <= 0.25 and bars.low + bars.width * len(bars.counts) >= 1.0
    assert len(bars.counts) <= 2 * 288**0.5
    (run / "metrics.json").write_text(json.dumps({"rows": metrics["rows"]}))  # as of an approximate ranking
    assert plot_data.score_histogram(Trace(run)) is None


def test_the_layer_curve_marks_the_chosen_layers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    choice = json.loads((run / "layers.json").read_text())

    def curve(**changes: object) -> plot_data.Plot:
        (run / "layers.json").write_text(json.dumps(choice | changes))
        plot = plot_data.layer_curve(Trace(run))
        assert plot is not None
        return plot

    plot = curve(curve=[0.9, 0.7, 0.8], probes=[[0.9, 0.6, 0.8]] * 3)
    assert [line.role for line in plot.lines] == ["probe"] * 3 + ["main"]
    assert plot.lines[-1].points == [(2, 0.9), (3, 0.7), (4, 0.8)] and plot.marks == [(3, 0.7, "layer 3")]
    assert plot.x_label == "later layer of the pair"
    assert curve(curve=[0.5], probes=[], layers=[9]).marks == []
    plot = curve(curve=[0.2, 0.9], probes=[[0.2, 0.9]], layers=[1], measure="average precision of rows", first=1)
    assert plot.marks == [(1, 0.2, "layer 1")] and plot.x_label == "layer"
    assert plot.summary == "Average precision of rows, 1 probes; chosen: layer 1."
    assert plot_data.layer_curve(Trace(write_run(tmp_path / "bare", Shape(probes=False)))) is None


def test_charts_are_well_formed() -> None:
    def plot(*lines: plot_data.Line, **settings: Any) -> plot_data.Plot:
        return plot_data.Plot("name", "Title", "Caption.", "Summary.", "k", "precision", lines=lines, **settings)

    drawn = [
        plot(
            Line([(2, 0.9), (3, 0.6)], "probe"), Line([(2, 0.9), (3, 0.7)]), marks=[(3, 0.7, "layer 3")], y_range=None
        ),
        plot(Line([(1, 1.0), (2, 0.5)], "secondary", "<b>"), Line([(1, 1.0), (2, 0.5)])),
        plot(Line([(1, 1.0)])),
        plot(Line([(1, 0.5)]), y_range=None),
        plot(Line([(layer, 0.5) for layer in range(1, 80)])),
        plot(bars=Bars(0.0, 0.5, [1000, 0, 3], [0, 0, 3], "best hits")),
    ]
    elements = [ElementTree.fromstring(svg(one)) for one in drawn]
    assert all(element.get("aria-label") == "Summary." for element in elements)
    names = [element.get("class") for element in elements[0].iter()]
    assert (names.count("probe"), names.count("main"), names.count("chosen")) == (1, 1, 1)
    texts = [[node.text for node in element.iter() if node.get("class") in ("tick", "mark")] for element in elements]
    assert "layer 3" in texts[0] and texts[0][-1] == "k"
    assert [node.text for node in elements[1].iter() if node.tag.endswith("title")] == ["<b>"]
    assert texts[4][5:-1] == ["1", "20", "40", "60", "79"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"_target_": "datamodules.synthetic.SyntheticData", "exclude": None}, ""),
        (
            {"_target_": "datamodules.instructions.InstructionData", "train": "a.jsonl", "exclude": None},
            "datamodule=instructions datamodule.train=a.jsonl ",
        ),
        ({"_target_": "datamodules.date_lm.DateLM", "exclude": None}, "datamodule=date_lm "),
        ({"_target_": "datamodules.hard_cases.HardCases"}, None),
    ],
)
def test_the_command_to_train_again_names_the_data_if_it_can_leave_rows_out(
    data: dict, words: str | None, tmp_path: Path
) -> None:
    trace = Trace(write_run(tmp_path / "run"))
    trace.config.datamodule = data
    rest = f"datamodule.exclude=culprits.json compare_with=models/tiny out={tmp_path / 'run'}-without"
    assert overview.retraining_command(trace) == ("" if words is None else f"python train.py {words}{rest}")
    assert ("python train.py" in render(trace)) == (words is not None)
