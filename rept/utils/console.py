"""The terminal: one console, plain lines of output, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rept.utils.ranks import own_rank
from rept.utils.text import visible

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=120)  # a log file has no width; 80 columns would cut the texts


def say(text: str) -> None:
    """Prints a line without reading markup in it; ranks other than 0 print nothing."""
    if own_rank() == 0:
        console.print(Text(text), soft_wrap=True)


def show_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    numbers: slice = slice(1, None),
    no_wrap: int = 0,
    **settings: Any,
) -> None:
    """Prints a table without reading markup in it; ranks other than 0 print nothing.

    Args:
        numbers: the columns that are aligned on the right.
        no_wrap: how many columns, the first ones, are not wrapped.
        settings: of rich's Table.
    """
    table = Table(title=title, title_justify="left", caption_justify="left", **settings)
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if i in range(len(columns))[numbers] else "left"
        table.add_column(Text(visible(column)), justify=side, no_wrap=i < no_wrap)
    for row in rows:
        table.add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in row))
    if own_rank() == 0:
        console.print(table)
