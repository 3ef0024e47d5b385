"""The terminal: one console, and plain lines of output."""

from __future__ import annotations

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.text import Text

console = Console(highlight=False)


if not console.is_terminal:
    console = Console(highlight=False, width=120)  # a log file has no width; 80 columns would cut the texts


def say(text: str) -> None:
    """A line of the run's own voice; markup in it is not read. Ranks other than 0 stay silent."""
    if rank_zero_only.rank:
        return
    console.print(Text(text), soft_wrap=True)
