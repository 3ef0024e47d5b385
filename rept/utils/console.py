"""The terminal: one console, and plain lines of output."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from rept.utils.ranks import own_rank

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=120)  # a log file has no width; 80 columns would cut the texts


def say(text: str) -> None:
    """Prints a line without reading markup in it; ranks other than 0 print nothing."""
    if own_rank() == 0:
        console.print(Text(text), soft_wrap=True)
