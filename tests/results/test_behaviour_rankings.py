"""Behaviour rankings of whole runs: files, Trace, terminal, page, exclusion, and scoring again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rept.calibration.two_groups import Estimate
from rept.commands import exclude
from rept.errors import UsageError
from rept.ranking.metrics import average_precision
from rept.ranking.rank import read_scores
from rept.report.page import render
from rept.results.trace import Trace
from rept.run import behaviour_stage
from rept.run.pipeline import attribute
from rept.run.rescore import score
from rept.utils.json_files import read_json, read_jsonl


@pytest.fixture(scope="module")
def done(material, tmp_path_factory) -> Trace:
    folder = tmp_path_factory.mktemp("behaviours") / "run"
    return attribute(material.config(folder), show_result=False)


def test_each_label_of_the_queries_has_a_ranking(done):
    labels = {q["label"] for q in done.queries if q["label"] not in (None, "clean") and done.hits(q["query"])}
    assert labels and set(done.behaviours) == labels == set(done.metrics["behaviours"])
    for name in done.behaviours:
        hits = done.behaviour(name)
        assert [hit.rank for hit in hits] == list(range(1, done.config.top_k + 1))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        measured = done.metrics["behaviours"][name]
        assert measured["queries"] == sum(q["label"] == name for q in done.queries if done.hits(q["query"]))
        assert 0 < measured["average_precision"] <= 1


def test_the_terminal_and_the_page_show_them(material, done, tmp_path, capsys):
    attribute(material.config(tmp_path / "run"))
    assert "Rows found for all queries of a behaviour together" in capsys.readouterr().out
    page = render(done)
    name = done.behaviours[0]
    assert 'id="behaviours"' in page and name in page
    assert f'data-rows="{done.behaviour(name)[0].row}"' in page


def test_the_page_counts_the_behaviours_that_it_leaves_out(done, tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps({f"group {i}": [0] for i in range(14)}))
    page = render(score([str(done.folder.path), f"behaviours={tmp_path / 'groups.json'}", f"out={tmp_path / 'again'}"]))
    assert "group 11" in page and "group 12" not in page and "2 more in <code>behaviours.jsonl</code>" in page


def test_an_unknown_behaviour_is_one_sentence(done):
    with pytest.raises(UsageError, match="has no ranking for the behaviour 'other'; it has: "):
        done.behaviour("other")


def test_stored_signatures_are_ranked_again_by_another_rule_and_for_other_groups(done, tmp_path):
    groups = tmp_path / "groups.json"
    numbers = [q["query"] for q in done.queries if done.hits(q["query"])]
    groups.write_text(json.dumps({"first": numbers[:2], "clean": numbers[2:3]}))
    run = str(done.folder.path)
    again = score([run, f"behaviours={groups}", "behaviour_scorer=centroid", f"out={tmp_path / 'again'}"])
    assert again.behaviours == ["first"] and again.metrics["behaviours"] == {"first": {"queries": 2}}
    same = score([run, f"out={tmp_path / 'same'}"])
    assert [same.behaviour(name) for name in same.behaviours] == [done.behaviour(name) for name in done.behaviours]
    assert again.behaviour("first") != same.behaviour(same.behaviours[0])
    with pytest.raises(UsageError, match="names query 999"):
        groups.write_text('{"first": [999]}')
        score([run, f"behaviours={groups}", f"out={tmp_path / 'wrong'}"])


def grouped(done, tmp_path, groups, *settings) -> Trace:
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    words = [f"behaviours={tmp_path / 'groups.json'}", f"out={tmp_path / 'again'}", *settings]
    return score([str(done.folder.path), *words])


def test_measures_leave_out_the_query_itself(done, tmp_path):
    again = grouped(done, tmp_path, {"odd": [3]}, "top_k=100")
    hits = again.behaviour("odd")
    assert hits[0].row == 3 and len(hits) == done.metrics["rows"]["attributed"]
    found = 1 + np.flatnonzero([hit.label == "odd" for hit in hits if hit.row != 3])
    assert again.metrics["behaviours"]["odd"]["average_precision"] == pytest.approx(average_precision(found))


def test_rows_are_listed_flagged_and_counted_by_their_estimate(done, tmp_path, monkeypatch):
    shares, asked = {0: 0.1, 1: 0.3, 5: 0.5, 20: 0.05}, []

    def estimate(row, score, held_out, train, query, queries, *_):
        assert np.array_equal(np.lexsort((row, -score)), np.arange(len(row))) and len(np.unique(score)) < len(score)
        asked.append((queries, len(held_out)))
        share = np.array([shares.get(place, 1.0) for place in range(len(row))])
        return Estimate(np.linspace(0, 1, len(row)), share, 1 - share)

    def with_ties(paths, behaviour):
        row, score = read_scores(paths, behaviour)
        return row[::-1], score[::-1].round()

    monkeypatch.setattr(behaviour_stage, "FEWEST", 3)
    monkeypatch.setattr(behaviour_stage, "estimate_members", estimate)
    monkeypatch.setattr(behaviour_stage, "read_scores", with_ties)
    again = grouped(done, tmp_path, {"three": [0, 1, 3], "two": [0, 1]}, "top_k=3", "calibration.rate=0.1")
    hits = again.behaviour("three")
    assert asked == [([0, 1, 3], 3)] and [hit.rank for hit in hits] == [1, 2, 3, 6, 21]
    assert [hit.false_share for hit in hits] == [0.1, 0.3, 1, 0.5, 0.05]
    assert [hit.flagged for hit in hits] == [True, False, False, False, True]
    assert [hit.p_value for hit in hits] == pytest.approx([(hit.rank - 1) / 36 for hit in hits])
    assert again.metrics["behaviours"]["three"]["rows"] == {"0.05": 1, "0.1": 2, "0.2": 2}
    assert [(hit.false_share, hit.flagged) for hit in again.behaviour("two")] == [(None, None)] * 3


def test_text_without_directions_has_none(done, material, tmp_path):
    words = ["extractor=text_bytes", "scorer=bm25", "tokens.hits=0"]
    trace = attribute(material.config(tmp_path / "words", *words), show_result=False)
    assert trace.behaviours == [] and not trace.folder.behaviours.exists() and "behaviours" not in trace.metrics


def test_rows_of_a_behaviour_are_excluded(done, tmp_path, capsys):
    name, out = done.behaviours[0], tmp_path / "culprits.json"
    exclude.run([str(done.folder.path), "--behaviour", name, "--first", "3", f"out={out}"])
    content = read_json(out)
    hits = done.behaviour(name)[:3]
    assert content["rows"] == sorted(hit.row for hit in hits)
    assert content["chosen"] == f"the first 3 hits of the behaviour {name}"
    assert {one["row"]: (one["rank"], one["behaviour"]) for one in content["why"]} == {
        hit.row: (hit.rank, name) for hit in hits
    }
    assert f"of the behaviour {name}" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has no ranking for the behaviour 'none'"):
        exclude.run([str(done.folder.path), "--behaviour", "none", f"out={tmp_path / 'other.json'}"])


def test_the_lines_are_those_that_the_readme_names(done):
    line = read_jsonl(done.folder.behaviours)[0]
    always = ["behaviour", "rank", "row", "score", "label", "prompt", "response"]
    assert list(line)[:7] == always and set(line) - set(always) <= {"p_value", "false_share"}
