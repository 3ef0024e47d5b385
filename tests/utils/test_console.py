"""Tables in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from rept.utils.console import show_table
from tests.helpers.terminal import print_to

ROWS = [("[bold]a[/bold]\x1b[31m", "1"), ("b", Text("20"))]


def test_a_table_shows_markup_and_control_characters_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    show_table("Title", ("[red]name", "number"), ROWS)
    title, _, head, _, *rows = stream.getvalue().splitlines()
    assert title.strip() == "Title" and head.split("┃")[1].strip() == "[red]name"
    assert rows[0].split("│")[1:3] == [" [bold]a[/bold]\\u{1b}[31m ", "      1 "]
    assert rows[1].split("│")[2] == "     20 "


def test_ranks_other_than_0_print_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    monkeypatch.setattr("rept.utils.console.own_rank", lambda: 1)
    show_table("Title", ("name", "number"), ROWS)
    assert stream.getvalue() == ""
