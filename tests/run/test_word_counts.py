"""words.jsonl of a run, counted again from its other files."""

from __future__ import annotations

import re

from rept.results.records import TokenScores, read_records
from rept.results.trace import Trace
from rept.run import word_counts
from rept.run.pipeline import attribute
from rept.utils.json_files import each_line


def plain(text: str) -> str:
    return f" {' '.join(re.sub(r'[^a-z ]', ' ', text.casefold()).split())} "


def test_counts_are_those_of_the_runs_rows(material, tmp_path):
    found = attribute(material.config(tmp_path / "run", "top_k=3", "tokens.hits=3"), show_result=False)
    labels = {query["query"]: query["label"] for query in found.queries}
    scored = [one for one in read_records(found.folder.tokens, TokenScores) if one.side == "train"]
    usable = set(range(len(material.rows))) - {5, 11, 17, 23}
    lines = list(each_line(found.folder.words))
    assert lines and {line["behaviour"] for line in lines} <= {"clean", "odd"}
    for line in lines:
        best = {one.row for one in scored if labels[one.query] == line["behaviour"]}
        others = usable - best  # fewer than are drawn
        words = plain(line["words"])
        texts = [[plain(material.rows[row][line["part"]]) for row in rows] for rows in (best, others)]
        assert (line["of_rows"], line["of_others"]) == (len(best), len(others))
        assert [line["rows"], line["others"]] == [sum(words in text for text in side) for side in texts]
    assert [one.words for one in Trace(found.folder.path).marked_words("odd")] == [
        line["words"] for line in lines if line["behaviour"] == "odd"
    ]


def test_where_every_row_is_a_hit_rows_that_few_queries_find_are_compared_with(material, tmp_path, monkeypatch):
    monkeypatch.setattr(word_counts, "OTHERS", 8)
    found = attribute(material.config(tmp_path / "run", "top_k=100"), show_result=False)
    results = list(each_line(found.folder.results))
    assert {hit["row"] for hit in results} == set(range(len(material.rows))) - {5, 11, 17, 23}
    lines = list(each_line(found.folder.words))
    assert "odd" in {line["behaviour"] for line in lines} and all(0 < line["of_others"] <= 8 for line in lines)
