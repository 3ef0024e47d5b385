"""The parts of the report: shades, words, findings, plots."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rept.commands import exclude
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


def test_clean_queries_show_no_behaviour(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=9, hits=12, rows=15, labels=("clean", "odd"))))
    odd = [trace.hits(query["query"]) for query in trace.queries if query["label"] == "odd"]
    found = Findings(trace)
    assert found.headline.startswith(f"{sum(hits[0].label == 'odd' for hits in odd)} of {len(odd)} queries lead")
    assert [(one.label, one.queries) for one in found.behaviours] == [("odd", len(odd))]
    plot = plot_data.precision_by_k(trace)
    assert plot is not None and [line.label for line in plot.lines] == ["overall"]
    assert plot.lines[0].points[-1] == (12, pytest.approx(np.mean([[h.label == "odd" for h in hits] for hits in odd])))


def test_queries_of_a_label_that_no_training_row_has_are_in_no_plot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(hits=7))
    known = json.loads((run / "metrics.json").read_text())
    missing = {"missing_labels": {"queries": {"backdoor": 3}, "training": ["false_fact"]}}
    (run / "metrics.json").write_text(json.dumps(known | missing))
    trace = Trace(run)
    plot = plot_data.precision_by_k(trace)
    assert plot is not None and [line.label for line in plot.lines] == ["overall"]
    first = [trace.hits(q["query"])[0].label == "false_fact" for q in trace.queries if q["label"] == "false_fact"]
    assert plot.lines[0].points[0] == (1, pytest.approx(np.mean(first)))


def test_the_query_itself_is_no_finding(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(queries=1, hits=12, rows=15, calibrated=True))
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    own = next(line["label"] for line in lines[1:])
    lines[0] |= {"same_as_query": True, "flagged": True}
    lines[1:] = [line | {"flagged": False} for line in lines[1:]]
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    query = json.loads((run / "queries.jsonl").read_text()) | {"label": own}
    (run / "queries.jsonl").write_text(json.dumps(query) + "\n")
    trace = Trace(run)
    found = Findings(trace)
    assert found.headline.startswith("For 0 of 1 query, a training row stands out at")
    assert found.leads == "1 of 1 query leads straight to training rows of its own behaviour."
    assert found.best[0] == found.behaviours[0].hit == trace.hits(0)[1]
    assert lines[0]["row"] not in [culprit.hit.row for culprit in found.culprits] and found.rows_found == 10
    plot = plot_data.precision_by_k(trace)
    assert plot is not None and plot.lines[-1].points[0] == (1, 1.0) and len(plot.lines[-1].points) == 11


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
        plot(Line([(1, 1.0), (2, 0.5)], "secondary", "<b>\ud800"), Line([(1, 1.0), (2, 0.5)])),
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
    assert [node.text for node in elements[1].iter() if node.tag.endswith("title")] == ["<b>\\u{d800}"]
    assert texts[4][5:-1] == ["1", "20", "40", "60", "79"]


@pytest.mark.parametrize(
    ("data", "model", "works"),
    [
        ("instructions.InstructionData", "recipe", True),
        ("instructions.InstructionData", "other", False),  # train.py did not make this model
        ("instructions.InstructionData", "some/hub-id", False),
        ("synthetic.SyntheticData", None, True),
        ("hard_cases.HardCases", "recipe", False),  # which cannot leave rows out
        ("in_memory.InMemoryData", None, False),
    ],
)
def test_the_command_to_train_again_is_shown_where_it_works(
    data: str, model: str | None, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipe", "other"):
        Path(name).mkdir()
    Path("recipe/training.yaml").touch()
    trace = Trace(write_run(Path("my run"), Shape(hits=30)))
    trace.config.model.path, trace.config.model.adapter = ("base", model) if model == "recipe" else (model, None)
    takes_rows_out = data.startswith(("instructions", "synthetic"))
    trace.config.datamodule = {"_target_": f"datamodules.{data}"} | ({"exclude": None} if takes_rows_out else {})
    page = render(trace).replace("&#39;", "'")
    assert overview.prove_command(trace) == ("python -m rept prove 'my run' culprits.json" if works else "")
    assert ("python -m rept prove 'my run' culprits.json" in page) == works
    assert ("No command to train again is shown" in page) != works
    assert "python -m rept exclude 'my run' --first 10" in page and "train.py datamodule" not in page


def test_the_commands_on_the_page_are_those_that_exist(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(hits=3)))
    words = shlex.split(overview.exclude_command(trace))
    assert words[:4] == ["python", "-m", "rept", "exclude"]
    exclude.run([*words[4:], f"out={tmp_path / 'culprits.json'}"])
    assert len(json.loads((tmp_path / "culprits.json").read_text())["why"]) > 3


def test_token_scores_of_single_queries_are_said_to_be_weaker(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(queries=4, hits=2, rows=10))
    assert overview.token_notes(Trace(run)) == []
    lines = [json.loads(line) | {"form": "distinctive"} for line in (run / "tokens.jsonl").read_text().splitlines()]
    lines = [line | {"references": 1 if line["query"] == 2 else 20} for line in lines]
    (run / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (note,) = overview.token_notes(Trace(run))
    assert note.startswith("The token scores of 1 of 4 queries come from that query alone, which is weaker")
    assert note in render(Trace(run))
    hits = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    same = [hit | {"same_as_query": hit["query"] == 2 and hit["rank"] == 1} for hit in hits]
    (run / "results.jsonl").write_text("".join(json.dumps(hit) + "\n" for hit in same))
    rows = {hit["query"]: hit["row"] for hit in hits if hit["rank"] == 1}
    first = [line for line in lines if line["row"] == rows[line["query"]]]  # tokens.hits=1
    (run / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in first))
    assert overview.token_notes(Trace(run)) == [note]


def test_distinctive_scores_have_a_fixed_scale() -> None:
    weak = replace(_scored(("a", 0.1), ("b", 0.2)), form="distinctive")
    assert scale(weak) == 1.0 and [piece.level for piece in shaded(weak)] == [1, 2]


def test_one_query_and_one_row_are_counted_in_the_singular(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=1, hits=1, rows=1)))
    said = overview.introduction(trace)
    assert said.startswith(
        "1 query was compared with 1 training row; 4 more rows set aside. The model itself gave 1 of 1 "
    )
    trace.metrics["rows"] |= {"read": 1, "set_aside": {}}
    assert overview.row_counts(trace)[0] == "1 row read"
    assert "1 query over 1 training row" in repr(trace)
    assert Findings(trace).rows_found == 1 and "1 different row in all" in render(trace)
