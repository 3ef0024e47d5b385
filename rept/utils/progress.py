"""Progress of anything that takes longer than a second: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from rept.utils.console import console, say

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """Yields ``advance(number=1, note=None)``: how many more are done, and what to show beside them from now on.

    Ranks other than 0 show nothing. In a log file, what ends within a second leaves no line.

    Args:
        title: what is being done, in a word or two.
        total: how many there are; None where nobody knows.
        unit: what is counted, in the plural.
    """
    if rank_zero_only.rank:
        yield lambda number=1, note=None: None
    elif console.is_terminal:
        with _bar() as bar:
            task = bar.add_task(title, total=total, unit=unit, note="")

            def advance(number: int = 1, note: str | None = None) -> None:
                bar.update(task, advance=number, **({} if note is None else {"note": note}))

            yield advance
    else:
        lines = _Lines(title, total, unit)
        yield lines.advance
        lines.close()


class ShowProgress(Callback):
    """Shows Lightning's training or prediction by :func:`progress`.

    Args:
        title: what is being done.
        total: rows to predict; training knows its number of steps.
        unit: what is counted.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "rows") -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self._shown: Any = None
        self._steps = 0
        self._advance: Callable[..., None] = lambda number=1, note=None: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.total = int(steps) if steps != float("inf") else None
        self._open()
        self._count_steps(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._count_steps(trainer, f"loss {outputs['loss'].item():.3f}" if trainer.global_step % 10 == 0 else None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if outputs is not None:  # else a step that only kept other ranks company
            # Ranks have shares of about one size, so rank 0 can speak for all.
            self._advance(len(outputs.row) * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _count_steps(self, trainer: Trainer, note: str | None = None) -> None:
        self._advance(trainer.global_step - self._steps, note)
        self._steps = trainer.global_step

    def _open(self) -> None:
        self._shown = progress(self.title, self.total, self.unit)
        self._advance = self._shown.__enter__()

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


class _Rate(ProgressColumn):
    """Units a second, with one digit where they are few."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{_number(speed)} {task.fields['unit']}/s", style="progress.data.speed")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{total}", style="progress.download")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        _Count(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
    )


class _Lines:
    """Progress as plain lines, for output that is no terminal."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = 0, ""
        self.start = self.told = time.monotonic()

    def advance(self, number: int = 1, note: str | None = None) -> None:
        self.done += number
        self.note = self.note if note is None else note
        now = time.monotonic()
        if now - self.told >= _SECONDS_BETWEEN_LINES:
            self.told = now
            self._tell(now - self.start, finished=False)

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        if seconds >= 1:
            self._tell(seconds, finished=True)

    def _tell(self, seconds: float, finished: bool) -> None:
        of_all = f" of {self.total:,}" if self.total and not finished else ""
        rate = self.done / seconds
        parts = [f"{self.done:,}{of_all} {self.unit}", f"{seconds:.0f} s", f"{_number(rate)} a second"]
        if self.total and not finished and self.done:
            parts.append(f"about {(self.total - self.done) / rate:.0f} s to go")
        say(f"{self.title}: {', '.join([*parts, *([self.note] if self.note else [])])}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
