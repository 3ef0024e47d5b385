"""Trace: example queries, and lines that are not records of this version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rept
from rept.errors import UsageError
from rept.report.findings import Findings
from rept.results.trace import Trace
from tests.helpers.runs import Shape, write_run

Change = Callable[[dict[str, Any]], Any]


def rewrite(path: Path, change: Change) -> None:
    """Changes each line of a JSON Lines file; None removes it."""
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_the_package_offers_trace_by_its_name() -> None:
    assert rept.Trace is Trace


def test_examples_are_the_clearest_query_of_each_label_and_then_the_first_others(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=9, labels=("a", "b", "c"))))
    clearest = [
        trace.clearest([query for query in trace.answered if trace.queries[query]["label"] == label])
        for label in ("a", "b", "c")
    ]
    assert trace.examples(3) == sorted(clearest)
    assert trace.examples(4) == sorted([*clearest, min(set(range(9)) - set(clearest))])
    assert len(trace.examples(2)) == 2 and set(trace.examples(2)) < set(clearest)
    assert {one.example["query"] for one in Findings(trace).behaviours} == set(clearest)


def test_the_clearest_query_is_chosen_by_label_token_scores_words_and_score(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(queries=4, hits=1, labels=("a",), scored=1))
    same = {"tokens": ["same"], "scores": [1.0], "special": [False], "agrees": [[]]}
    rewrite(run / "results.jsonl", lambda line: line | {"label": "a", "score": 0.6 if line["query"] == 3 else 0.5})
    rewrite(run / "tokens.jsonl", lambda line: line | same)
    assert Trace(run).clearest(range(4)) == 3
    rewrite(run / "tokens.jsonl", lambda line: line | ({"tokens": ["rare"]} if line["query"] == 3 else {}))
    assert Trace(run).clearest(range(4)) == 0
    rewrite(run / "tokens.jsonl", lambda line: line if line["query"] else None)
    assert Trace(run).clearest(range(4)) == 1
    rewrite(run / "results.jsonl", lambda line: line | ({"label": "b"} if line["query"] == 1 else {}))
    assert Trace(run).clearest(range(4)) == 2


@pytest.mark.parametrize("name", ["results", "opponents", "tokens"])
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda line: line | {"alike": 3}, "query, .*, alike"),
        (lambda line: {key: value for key, value in line.items() if key != "query"}, "r[a-z]+, .*"),
        (lambda line: [1], r"\[1\]"),
    ],
)
def test_a_line_of_another_schema_is_reported(tmp_path: Path, name: str, change: Change, got: str) -> None:
    run = write_run(tmp_path / "run", Shape(opponents=2))
    rewrite(run / f"{name}.jsonl", change)
    trace = Trace(run)
    read: dict[str, Callable[[], object]] = {
        "results": lambda: trace.hits(0),
        "opponents": lambda: trace.opponents(0),
        "tokens": lambda: trace.scored(0),
    }
    expected = f"Expected line 1 of .*{name}.jsonl to have the fields query, .*, but got {got}: another version .* out="
    with pytest.raises(UsageError, match=expected):
        read[name]()
