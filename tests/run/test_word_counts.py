"""words.jsonl of a run, counted again from its other files."""

from __future__ import annotations

import re

from rept.results.records import TokenScores, read_records
from rept.results.trace import Trace
from rept.run import word_counts
from rept.run.pipeline import attribute
from rept.run.prepare import prepare
from rept.utils.json_files import each_line, write_jsonl


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


def test_hits_that_the_ranking_of_the_behaviour_does_not_list_are_left_out(material, tmp_path):
    """Single queries find rows of their subject too."""
    config = material.config(tmp_path / "run", "top_k=3", "tokens.hits=3")
    found = attribute(config, show_result=False)
    labels = {query["query"]: query["label"] for query in found.queries}
    scored = [one for one in read_records(found.folder.tokens, TokenScores) if one.side == "train"]
    hits = sorted({one.row for one in scored if labels[one.query] == "odd"})
    line = next(line for line in each_line(found.folder.behaviours) if line["behaviour"] == "odd")
    job = prepare(config)

    def rows_of(listed: list[int]) -> set[int]:
        write_jsonl(found.folder.behaviours, [line | {"row": row} for row in listed])
        word_counts.write_words(job)
        return {of["of_rows"] for of in each_line(found.folder.words) if of["behaviour"] == "odd"}

    assert len(hits) > 2 and rows_of(hits[:2]) == {2}
    assert rows_of(hits) == rows_of([]) == {len(hits)}
    usable = set(range(len(material.rows))) - {5, 11, 17, 23}
    never = sorted(usable - {one["row"] for one in each_line(found.folder.results)})
    order = [row for row, _ in word_counts._other_rows(job, never[:2])]
    assert set(order) == usable and set(order[-2:]) == set(never[:2])
