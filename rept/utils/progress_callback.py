"""The progress of a Lightning Trainer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning import Callback, LightningModule, Trainer

from rept.types import Batch
from rept.utils.progress import progress
from rept.utils.slow_steps import SlowSteps


class ShowProgress(Callback):
    """Shows the `progress` of Lightning's training, which knows its number of steps, or of predicting rows."""

    def __init__(self, title: str, total: int | None = None, unit: str = "rows") -> None:
        self.title, self.total, self.unit = title, total, unit
        self._shown = ExitStack()
        self._steps = 0
        self._slow = SlowSteps()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.total = int(steps) if steps != float("inf") else None
        self._open()
        self._count_steps(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        self._slow.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._slow.end(batch.input_ids.numel())
        self._count_steps(trainer, f"loss {outputs['loss'].item():.3f}" if trainer.global_step % 10 == 0 else None)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._slow.begin()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        if outputs is not None:  # otherwise a step without rows, because other ranks have more of them
            self._slow.end(batch.input_ids.numel())
            # Ranks have shares of about the same size, so rank 0 reports for all.
            self._advance(len(outputs.row) * trainer.world_size)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._shown.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shown.close()

    def _open(self) -> None:
        self._advance = self._shown.enter_context(progress(self.title, self.total, self.unit))

    def _count_steps(self, trainer: Trainer, note: str | None = None) -> None:
        self._advance(trainer.global_step - self._steps, note)
        self._steps = trainer.global_step
