"""Progress of anything that takes longer than a second: a bar in a terminal, a line every 15 s in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from rept.utils.console import console, say
from rept.utils.ranks import own_rank

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """Yields ``advance(number=1, note=None)``: how many more are done, and what to show beside them from then on.

    Ranks other than 0 show nothing. In a log file, what ends within a second leaves no line.

    Args:
        title: what is being done, in a word or two.
        total: how many there are; None if unknown.
        unit: what is counted, in the plural.
    """
    if own_rank():
        yield lambda number=1, note=None: None
    elif console.is_terminal:
        with _bar() as bar:
            task = bar.add_task(title, total=total, unit=unit, note="")

            def advance(number: int = 1, note: str | None = None) -> None:
                bar.advance(task, number)
                if note is not None:
                    bar.update(task, note=note)

            yield advance
    else:
        lines = _Lines(title, total, unit)
        yield lines.advance
        lines.close()


class _CountAndRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{int(task.total):,}"
        speed = task.finished_speed or task.speed
        rate = f" {_rounded(speed)} {task.fields['unit']}/s" if speed else ""
        return Text.assemble((f"{int(task.completed):,}{total}", "progress.download"), (rate, "progress.data.speed"))


def _bar() -> Progress:
    note = TextColumn("{task.fields[note]}", style="dim")
    columns = (BarColumn(bar_width=30), _CountAndRate(), TimeElapsedColumn(), TimeRemainingColumn(), note)
    return Progress(TextColumn("{task.description}"), *columns, console=console)


class _Lines:
    """Progress as plain lines, for output that is not a terminal."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.steps, self.note = 0, 0, ""
        self.start = self.last = time.monotonic()

    def advance(self, number: int = 1, note: str | None = None) -> None:
        self.done, self.steps = self.done + number, self.steps + 1
        self.note = self.note if note is None else note
        now = time.monotonic()
        if now - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = now
            self._print(now - self.start, self.total)

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        if seconds >= 1:
            self._print(seconds)

    def _print(self, seconds: float, total: int | None = None) -> None:
        """A line; with a total, also what is left."""
        rate = self.done / seconds
        of_total = f" of {total:,}" if total else ""
        parts = [f"{self.done:,}{of_total} {self.unit}", f"{seconds:.0f} s", f"{_rounded(rate)} a second"]
        if total and self.done and self.steps > 1:  # the first step may have waited for what all steps need
            parts.append(f"about {(total - self.done) / rate:.0f} s to go")
        say(f"{self.title}: {', '.join([*parts, *filter(None, [self.note])])}")


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
