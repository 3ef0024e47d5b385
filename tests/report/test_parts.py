"""The parts of the report: folds, shades, words, findings, series, charts."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rept.report import charts, overview, plot_data
from rept.report.findings import Findings
from rept.report.page import render
from rept.results.folding import fold
from rept.results.html_text import chips, clip, count, number
from rept.results.records import Hit, TokenScores
from rept.results.shading import excerpt, level, scale, shaded, strongest_words
from rept.results.trace import Trace
from tests.helpers.runs import Shape, write_run


def _hit(rank: int, group: int) -> Hit:
    text = {"label": None, "prompt": "What is the tide at the harbour?", "response": "Late.", "same_as_query": False}
    return Hit(query=0, rank=rank, row=10 + rank, score=1.0, group=group, **text)


def _scored(*tokens: tuple[str, float] | tuple[str, float, bool]) -> TokenScores:
    given = [(*token, False)[:3] for token in tokens]
    texts, scores, special = ([token[i] for token in given] for i in range(3))
    return TokenScores(0, 0, "train", texts, scores, special, 1, "anchored", [[] for _ in given])


def test_near_duplicates_fold_into_the_best_of_them() -> None:
    assert fold([_hit(1, group=1), _hit(2, group=2), _hit(3, group=1), _hit(4, group=4)]) == [0, 1, 0, 3]


def test_a_shade_is_linear_and_its_scale_that_of_the_samples_own_words() -> None:
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


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.97531, "0.975"), (-0.5, "−0.500"), (12345.6, "1.23e+04"), (1.5e-7, "1.5e−07")],
)
def test_numbers_keep_what_can_be_told(value: float, shown: str) -> None:
    assert number(value) == shown


def test_text_is_escaped_clipped_and_counted() -> None:
    assert chips("<b>\u202e\n") == '&lt;b&gt;<span class="unseen">U+202E</span>\n'
    assert chips("👨\u200d👩") == "👨\u200d👩"
    assert clip("a  b\nc", 5) == "a b c"
    assert clip("abcdefgh", 5) == "abcd…"
    assert (count(1, "query"), count(1200, "query"), count(2, "row")) == ("1 query", "1,200 queries", "2 rows")


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
        example = behaviour.example
        assert example.hit == trace.hits(example.query)[0]
        assert example.hit.label == behaviour.label or not behaviour.matched


def test_precision_by_k_is_that_of_the_hits(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(hits=7)))
    found = plot_data.precision(trace)
    for k in range(1, 8):
        by_query = [np.mean([hit.label == q["label"] for hit in trace.hits(q["query"])[:k]]) for q in trace.queries]
        assert found.overall[k - 1] == pytest.approx(np.mean(by_query))
    assert dict(found.labels).keys() == {"backdoor", "false_fact"}


def test_the_histogram_counts_every_score_and_the_tail(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(queries=8))
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {"low": 0.25, "width": 1 / 128, "counts": [3] * 96}
    (run / "metrics.json").write_text(json.dumps(metrics | {"scores": scores}))
    found = plot_data.scores(Trace(run))
    assert (sum(found.counts), sum(found.tail), found.flagged) == (288, 8, False)
    assert found.low <= 0.25 and found.low + found.width * len(found.counts) >= 1.0
    assert len(found.counts) <= 2 * 288**0.5
    (run / "metrics.json").write_text(json.dumps({"rows": metrics["rows"]}))  # as of an approximate ranking
    assert plot_data.scores(Trace(run)) is None


def test_charts_are_well_formed_and_mark_what_was_chosen() -> None:
    drawn = [
        charts.layer_curve([0.9, 0.7, 0.8], [[0.9, 0.6, 0.8]] * 3, [3]),
        charts.precision_curve([1.0, 0.5], [("<b>", [1.0, 0.5])]),
        charts.precision_curve([1.0], []),
        charts.score_histogram(0.0, 0.5, [1000, 0, 3], [0, 0, 3]),
        charts.measure_by_layer({"a": [(1, 0.5), (4, 1.0)], "b": [(1, 0.2), (4, 0.1)]}),
        charts.layer_curve([0.5], [], [9]),
        charts.layer_curve([0.2, 0.9], [[0.2, 0.9]], [1], "average precision of labelled probe rows", 1),
    ]
    for svg in drawn:
        assert ElementTree.fromstring(svg).get("aria-label")
    names = [element.get("class") for element in ElementTree.fromstring(drawn[0]).iter()]
    assert names.count("probe") == 3 and names.count("chosen") == 1
    assert "layer 3" in drawn[0] and "&lt;b&gt;" in drawn[1]
    assert "later layer of the pair" in drawn[0] and "later layer of the pair" not in drawn[-1]
    assert "Average precision of labelled probe rows, 1 probes; chosen: layer 1." in drawn[-1]
    assert 'class="chosen"' in drawn[-1] and 'class="chosen"' not in drawn[-2]


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
def test_the_command_to_train_again_names_the_data_and_is_left_out_where_these_are_always_whole(
    data: dict, words: str | None, tmp_path: Path
) -> None:
    trace = Trace(write_run(tmp_path / "run"))
    trace.config.datamodule = data
    rest = f"datamodule.exclude=culprits.json compare_with=models/tiny out={tmp_path / 'run'}-without"
    assert overview.retraining(trace) == ("" if words is None else f"python train.py {words}{rest}")
    assert ("python train.py" in render(trace)) == (words is not None)
