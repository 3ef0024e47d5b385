"""SIGTERM and Ctrl-C: the batch is finished, the shard is closed, and the process ends with the signal's own code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from rept.errors import Ended

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Ended):
    """The run was asked to stop. No Exception, so that nothing on the way takes it for a failure that it could mend."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return (
            f"Stopped by {signal.Signals(self.exit_code - 128).name}; what was computed is stored. "
            "Give the same command again to go on."
        )


class StopBetweenBatches(Callback):
    """Raises `Stopped` after the batch in whose midst a signal came.

    Lightning swallows SIGTERM while it predicts, and a KeyboardInterrupt in the midst of a batch would lose the shard.
    """

    def __init__(self) -> None:
        self._predicting = False
        self._reason: BaseException | None = None

    def ask(self, reason: BaseException) -> None:
        """Raises ``reason`` after the batch; the first that asks is heard."""
        self._reason = self._reason or reason

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Takes the signals while the block runs. Outside a prediction, and the second time, they act at once.

        Python gives signals to the main thread alone; a run in another one leaves them as they are.
        """
        before = {number: signal.signal(number, self._handle) for number in SIGNALS} if _in_main_thread() else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predicting = True
        if _in_main_thread():
            # Lightning has put a handler of its own before ours, in which a rank waits for the others to be told, too.
            signal.signal(signal.SIGTERM, self._handle)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._reason is not None:
            raise self._reason

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predicting = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._predicting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._predicting or self._reason is not None:
            raise Stopped(number)
        self.ask(Stopped(number))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
