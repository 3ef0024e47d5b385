"""Pictures for papers, and a result in a notebook."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rept.commands import report
from rept.results.trace import Trace
from tests.helpers.runs import HOSTILE, READABLE, Shape, write_run

NAMES = {"layer_curve", "precision_by_k", "score_histogram", "token_strip"}


def test_figures_are_written_as_png_and_svg_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run")
    report.run([str(run), "--figures"])
    written = {path.name: path.read_bytes() for path in (run / "figures").iterdir()}
    assert written.keys() == {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    assert all(content.startswith(b"\x89PNG") for name, content in written.items() if name.endswith("png"))
    assert b"cosine of adjacent layers" in written["layer_curve.svg"]
    report.run(["--figures", str(run)])
    again = {path.name: path.read_bytes() for path in (run / "figures").iterdir()}
    assert {name for name in written if again[name] != written[name]} == set()


def test_characters_that_the_font_lacks_are_counted_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")
    report.run(
        [str(write_run(tmp_path / "run", Shape(texts=("\U0010fffd\U0010fffc",)))), "--figures"]
    )  # no font has these
    assert not [one for one in recwarn if "Glyph" in str(one.message)]
    assert "token_strip.png has boxes in place of 2 characters" in " ".join(capsys.readouterr().out.split())


def test_figures_without_data_are_left_out_and_odd_text_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bare = write_run(tmp_path / "bare", Shape(labels=(), scored=0, probes=False))
    report.run([str(bare), "--figures"])
    assert {path.stem for path in (bare / "figures").iterdir()} == {"score_histogram"}
    odd = write_run(tmp_path / "odd", Shape(texts=(*HOSTILE, "$\\frac{1}$ _^", *READABLE), labels=("$a", "b_{")))
    report.run([str(odd), "--figures"])
    assert {path.stem for path in (odd / "figures").iterdir()} == NAMES


def test_a_notebook_shows_hits_with_shaded_tokens(tmp_path: Path) -> None:
    trace = Trace(write_run(tmp_path / "run"))
    html = trace._repr_html_()
    assert html.count("<table>") == 3
    assert re.search(r"background: rgba\(236, 112, 20, 0\.75\)", html)
    assert "rgba(63, 134, 210" in html
    shown = [int(number) for number in re.findall(r"<b>Query (\d)</b>", html)]
    assert {trace.queries[query]["label"] for query in shown} == {"backdoor", "false_fact"}
    assert all(f">{hit.row} <small>" in html for query in shown for hit in trace.hits(query)[:3])
    assert "3 more" in html


def test_a_notebook_shows_hostile_text_as_text(tmp_path: Path) -> None:
    tags: set[str] = set()
    names: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            names.update(name for name, _ in attrs)

    trace = Trace(write_run(tmp_path / "run", Shape(texts=HOSTILE, labels=HOSTILE[:2])))
    Reader().feed(trace._repr_html_())
    assert tags == {"div", "p", "b", "span", "small", "table", "thead", "tbody", "tr", "th", "td"}
    assert names == {"style", "title", "class"}


def test_a_notebook_shows_a_run_without_labels_or_tokens(tmp_path: Path) -> None:
    html = Trace(write_run(tmp_path / "run", Shape(labels=(), scored=0)))._repr_html_()
    assert "<table>" in html and "rgba" not in html
