"""The report page as a file: its content, what it leaves out, and that nothing in the data becomes markup."""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode, b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rept.commands import report
from rept.errors import UsageError
from rept.report.findings import Findings
from rept.report.page import render, write_report
from rept.report.page_data import LADDER, Limits, PageBlocks
from rept.results.trace import Trace
from tests.helpers.runs import HOSTILE, READABLE, Shape, write_run

LARGE = Shape(queries=100, hits=20, rows=2000, scored=3, words=60)


class Page(HTMLParser):
    """Tags, attributes and text of a page, from an HTML parser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.by_id: dict[str, dict[str, str | None]] = {}
        self.text: list[str] = []
        self.packed: dict[str, str] = {}
        self._script: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        given = dict(attrs)
        if given.get("id"):
            assert given["id"] not in self.by_id
            self.by_id[given["id"]] = given
        self._script = given.get("id") or "script" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.packed[self._script] = data
        elif data.strip():
            self.text.append(data)

    def block(self, name: str) -> Any:
        return json.loads(zlib.decompress(b64decode(self.packed[f"block-{name}"])))

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(write_run(tmp_path / "run"))


def test_the_command_makes_the_page_from_the_run_folder_alone(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run")
    report.run([str(run)])
    assert "report.html" in "".join(capsys.readouterr().out.split())
    page = Page((run / "report.html").read_text())
    assert page.tags.count("h1") == 1
    assert {"found", "rows", "queries", "evidence", "run", "act"} <= page.by_id.keys()
    assert not list(run.glob(".report*"))


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--figure", "run"], ["--figures"]])
def test_wrong_arguments_are_reported_in_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="one run folder"):
        report.run(arguments)


def test_a_folder_without_a_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="config.yaml"):
        report.run([str(tmp_path)])


def test_the_blocks_contain_what_the_run_found(trace: Trace) -> None:
    page = Page(render(trace))
    index = page.block("index")
    assert [query["query"] for query in index["queries"]] == list(range(6))
    for query in index["queries"]:
        hits = trace.hits(query["query"])
        assert [(hit["row"], hit["score"], hit["rank"]) for hit in query["hits"]] == [
            (hit.row, hit.score, hit.rank) for hit in hits
        ]
        assert query["scored"] == trace.scored(query["query"])
        for hit in hits:
            label, block = index["rows"][str(hit.row)]
            sample = page.block(f"rows-{block}")[str(hit.row)]
            assert (label, sample["prompt"], sample["response"]) == (hit.label, hit.prompt, hit.response)
        pairs = page.block(f"pairs-{query['query']}")
        for row in query["scored"]:
            sides = trace.tokens(query["query"], row)
            for side, packed in pairs["rows"][str(row)].items():
                unpacked = [score * packed["scale"] / 1000 for score in packed["scores"]]
                assert unpacked == pytest.approx(sides[side].scores, abs=packed["scale"] / 1000)
                assert packed["agrees"] == sides[side].agrees


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(trace: Trace) -> None:
    html = render(trace)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = b64encode(sha256(content[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert not re.search(r"(src|href)=\"?(https?:)?//|url\(|@import", html)


def test_hostile_text_adds_no_tag_and_no_attribute(tmp_path: Path) -> None:
    shape = Shape(calibrated=True, opponents=2)
    tame = Page(render(Trace(write_run(tmp_path / "tame", shape))))
    wild_shape = Shape(texts=HOSTILE, labels=HOSTILE[:2], calibrated=True, opponents=2)
    wild = Page(render(Trace(write_run(tmp_path / "{{ 7 * 7 }}<b>'\"", wild_shape))))
    assert wild.attributes == tame.attributes
    assert set(wild.tags) == set(tame.tags)
    assert wild.packed["script"] == tame.packed["script"]
    assert wild.tags.count("script") == 1 + len([name for name in wild.packed if name.startswith("block-")])
    assert "{{ 7 * 7 }}" in wild.words and "<b>" in wild.words
    assert "<script>window.pwned = 1" in wild.words
    assert not {"\u202e", "\x1b", "\x00", "\ufeff"} & set(wild.words)
    assert "U+202E" in wild.words and "U+001B" in wild.words


def test_a_rendered_row_is_shown_with_its_response_highlighted(trace: Trace) -> None:
    (prompt, _), (response, _) = trace.provenance["rendered"]["parts"]
    html = render(trace)
    assert "Training row 0 as the model reads it, the response highlighted:" in html
    assert f"{escape(prompt)}<mark>{escape(response)}</mark></p>" in html
    trace.provenance["rendered"] = None  # no row that can be attributed was found
    assert "as the model reads it" not in render(trace)


def test_the_page_of_a_run_without_labels_tokens_and_curve_says_so(tmp_path: Path) -> None:
    page = Page(render(Trace(write_run(tmp_path / "run", Shape(labels=(), scored=0, probes=False)))))
    assert "No measures: they need labels of behaviours on queries and training rows." in page.words
    assert "Precision by k" not in page.words and "Cosine of adjacent layers" not in page.words
    assert "of the first hits of 6 queries come from" in page.words
    assert page.block("index")["queries"][0]["scored"] == []


def test_the_page_of_a_calibrated_run_shows_what_stands_out(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(labels=(), calibrated=True)))
    page = Page(render(trace))
    assert (
        "For 3 of 6 queries, a training row stands out at a false discovery rate of 0.05, against 99 references."
        in page.words
    )
    assert "compared with 99 references (drawn rows)" in page.words and "At most 0.05 of the queries" in page.words
    assert "The p-value of a hit is the share of these references" in page.words
    assert "in colour: flagged as standing out." in page.words
    first = page.block("index")["queries"][0]["hits"][0]
    assert first["flagged"] is True and first["p"] == 0.01


def test_a_calibrated_run_with_labels_says_by_label_what_stands_out(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(calibrated=True)))
    page = Page(render(trace))
    assert (
        Findings(trace).headline
        == "For 3 of 6 queries, a training row stands out at a false discovery rate of 0.05, against 99 references."
    )
    assert "of 6 queries lead straight to training rows of their own behaviour." in page.words
    tallies = {found.label: found.stand_out for found in Findings(trace).behaviours}
    assert tallies == {"backdoor": 3, "false_fact": 0}
    assert "3 of 3 have a row that stands out" in page.words and "0 of 3 have a row that stands out" in page.words


def test_problems_of_labels_are_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    missing = {"queries": {"<b>": 2}, "training": ["backdoor", "false_fact"]}
    metrics = json.loads((run / "metrics.json").read_text()) | {"missing_labels": missing, "not_shown": [0, 1]}
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = Page(render(Trace(run)))
    assert "No training row has the label <b> (2 queries); the training rows have: backdoor, false_fact." in page.words
    assert "of 4 queries lead straight" in page.words and "1 answer without the behaviour left out" in page.words
    assert [query.get("unshown", False) for query in page.block("index")["queries"]] == [True] * 2 + [False] * 4


def test_a_run_whose_queries_were_all_set_aside_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Shape(hits=0, scored=0))
    page = Page(render(Trace(run)))
    assert "No query could be traced." in page.words


def test_a_hundred_queries_with_twenty_hits_are_below_five_megabytes(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", LARGE))
    path = write_report(trace)
    page = Page(path.read_text())
    assert path.stat().st_size < 5_000_000
    assert len(page.block("index")["queries"]) == 100
    assert "Left out" not in page.words


def test_what_does_not_fit_is_left_out_and_listed(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=8, hits=30, rows=200, scored=12, words=300)))
    page = Page(render(trace, most_bytes=200_000))
    index = page.block("index")
    listed = re.search(r"Left out to keep this page small: (.*?\.jsonl)\.", page.words)[1]
    kept = len(index["queries"][0]["hits"])
    assert kept < 30 and f"{8 * (30 - kept):,} hits after a query's first {kept}: results.jsonl" in listed
    assert "token scores of" in listed and "texts beyond" in listed


def test_every_step_of_the_ladder_is_smaller() -> None:
    for larger, smaller in zip(LADDER, LADDER[1:], strict=False):
        assert all(a >= b for a, b in zip(vars(larger).values(), vars(smaller).values(), strict=True))
        assert larger != smaller


def test_of_a_long_text_the_stretch_around_its_strongest_token_is_kept(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(queries=1, hits=1, scored=1, words=800, seed=4)))
    row = trace.scored(0)[0]
    train = trace.tokens(0, row)["train"]
    own = [i for i, special in enumerate(train.special) if not special]
    strongest = max(own, key=lambda i: train.scores[i])
    blocks = PageBlocks(trace, Limits(queries=1, hits=1, scored=1, characters=300))
    content, left_out = blocks.by_name, blocks.left_out
    tokens = content["rows-0"][row]["tokens"]
    assert tokens["before"] <= strongest < len(train.tokens) - tokens["after"]
    assert len(tokens["text"]) <= 300 and left_out.texts == 4
    packed = content["pairs-0"]["rows"][row]
    for side, other in (("train", content["pairs-0"]["tokens"]), ("query", tokens)):
        kept = packed[side]["scores"], packed[side]["agrees"]
        assert len(kept[0]) == len(kept[1])
        assert all(0 <= i < len(other["lengths"]) for positions in kept[1] for i in positions)
    shifted = [i - content["pairs-0"]["tokens"]["before"] for i in train.agrees[strongest]]
    inside = [i for i in shifted if 0 <= i < len(content["pairs-0"]["tokens"]["lengths"])]
    assert packed["train"]["agrees"][strongest - tokens["before"]] == inside


def test_token_lengths_count_as_javascript_does(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run", Shape(texts=READABLE)))
    content = PageBlocks(trace, LADDER[0]).by_name
    texts = [content[f"pairs-{query}"]["tokens"] for query in range(6)]
    assert any(sum(tokens["lengths"]) > len(tokens["text"]) for tokens in texts)  # emoji are two units each
    for tokens in texts:
        assert sum(tokens["lengths"]) == len(tokens["text"].encode("utf-16-le")) // 2


def test_layers_measured_alone_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    each = {f"residual_stream/{layer}": {"overall": {"average_precision": layer / 10}} for layer in (2, 10, 4)}
    (run / "metrics.json").write_text(json.dumps(metrics | {"each": each}))
    html = render(Trace(run))
    assert "Average precision by layer" in html
    assert "0.200 at layer 2, 0.400 at layer 4, 1.000 at layer 10" in html
