import io

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from rept.utils import progress as module
from rept.utils.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_lines_every_15_seconds_without_a_terminal(clock, capsys):
    with progress("Reading", total=400, unit="rows") as advance:
        for _ in range(4):
            clock.now += 10
            advance(100, note="loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Reading: 200 of 400 rows, 20 s, 10 a second, about 20 s to go, loss 0.5",
        "Reading: 400 of 400 rows, 40 s, 10 a second, about 0 s to go, loss 0.5",
        "Reading: 400 rows, 40 s, 10 a second, loss 0.5",
    ]


def test_the_first_step_alone_does_not_say_how_long_the_others_take(clock, capsys):
    with progress("Scoring", total=600, unit="texts") as advance:
        for seconds in (300, 0, 15):
            clock.now += seconds
            advance()
        clock.now = 0.5
    assert capsys.readouterr().out.splitlines() == [
        "Scoring: 1 of 600 texts, 300 s, 0.0 a second",
        "Scoring: 3 of 600 texts, 315 s, 0.0 a second, about 62685 s to go",
    ]


def test_an_unknown_total(clock, capsys):
    with progress("Reading", unit="texts") as advance:
        clock.now += 16
        advance(8)
    assert capsys.readouterr().out.splitlines() == ["Reading: 8 texts, 16 s, 0.5 a second"] * 2


def test_what_ends_within_a_second_leaves_no_line(clock, capsys):
    with progress("Reading", total=3) as advance:
        clock.now += 0.5
        advance(3)
    assert capsys.readouterr().out == ""


def test_a_bar_in_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=stream, force_terminal=True, width=100))
    with progress("Reading", total=4, unit="rows") as advance:
        advance(4, note="loss 0.5")
    assert "4/4" in stream.getvalue() and "loss 0.5" in stream.getvalue()


def test_other_ranks_are_silent(monkeypatch, capsys, clock):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with progress("Reading", total=4) as advance:
        clock.now += 100
        advance(4)
    assert capsys.readouterr().out == ""
