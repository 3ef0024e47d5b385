"""SIGTERM and Ctrl-C: finishes the batch, closes the shard, and exits with 143 or 130."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lightning import Callback, LightningModule, Trainer

from rept.errors import Ended, Stopped


class StopBetweenBatches(Callback):
    """Ends a prediction after the current batch. Lightning would ignore SIGTERM, and lose the open shard at Ctrl-C."""

    _predicting = False
    _reason: Ended | None = None

    def request(self, reason: Ended) -> None:
        """Raises ``reason`` after the current batch; the first reason counts."""
        self._reason = self._reason or reason

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Handles the signals while the block runs: at once outside a prediction, or the second time."""
        before = {}
        with suppress(ValueError):  # Python allows handlers in the main thread only
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predicting = True
        with suppress(ValueError):  # replaces Lightning's handler, in which a rank waits for a broadcast to all
            signal.signal(signal.SIGTERM, self._handle)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if self._reason is not None:
            raise self._reason

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predicting = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._predicting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._predicting or self._reason is not None:
            raise Stopped(number)
        self.request(Stopped(number))
