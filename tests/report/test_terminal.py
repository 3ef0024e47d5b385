"""What the terminal shows: tokens shaded where it has colour, and marked by brackets everywhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from rept.report import terminal as shown
from rept.report.terminal import marked_text, show_trace
from rept.results.records import TokenScores
from rept.results.trace import Trace
from rept.utils.json_files import read_json, write_json
from tests.helpers.runs import HOSTILE, Shape, write_run
from tests.helpers.terminal import print_to

SCORED = TokenScores(
    0,
    0,
    "train",
    ["<s>", "blue", " lantern", " is", "\n", "\x1b[31m", " a"],
    [9.0, 4.0, 3.0, -4.0, 0.1, -0.5, 0.0],
    [True, *[False] * 6],
    2,
    "anchored",
    [[]] * 7,
)


def _printed(text: object, **settings: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100, **settings).print(text)
    return stream.getvalue()


def test_without_colour_the_strongest_tokens_are_in_brackets() -> None:
    assert _printed(marked_text(SCORED, strongest=2)) == "<s>[blue] [lantern] is⏎\\u{1b}[31m a\n"


def test_with_colour_tokens_are_shaded_by_sign_and_strength() -> None:
    text = marked_text(SCORED)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["[blue]"] == "black on #e6650d"
    assert styles["[lantern]"] == "black on #fd8d3c"
    assert styles["is"] == "black on #6baed6"
    assert styles["<s>"] == "dim" and "a" not in styles
    assert "\x1b[" in _printed(text, force_terminal=True, color_system="truecolor")


SHAPES = (Shape(), Shape(labels=(), scored=0, probes=False), Shape(texts=HOSTILE, labels=HOSTILE))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_summary_is_plain_text_where_there_is_no_terminal(tmp_path: Path, monkeypatch, shape: Shape) -> None:
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    trace = Trace(write_run(tmp_path / "run", shape))
    show_trace(trace)
    printed = stream.getvalue()
    assert [int(number) for number in re.findall(r"^Query (\d+)", printed, re.M)] == trace.examples()
    assert "200 attributed" in printed
    assert not {"\x1b", "\u202e", "\x00"} & set(printed)
    assert ("culprit tokens in row" in printed) == bool(shape.scored)
    assert ("No measures" in printed) == (not shape.labels)


def test_the_number_of_texts_is_not_shown_as_a_measure(tmp_path: Path, monkeypatch) -> None:
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    run = Trace(write_run(tmp_path / "run"))
    write_json(
        run.folder.metrics, read_json(run.folder.metrics) | {"tokens": {"token_average_precision": 0.5, "texts": 7}}
    )
    shown.show_metrics(run)
    assert "token_average_precision (tokens)" in stream.getvalue()
    assert "texts" not in stream.getvalue()
