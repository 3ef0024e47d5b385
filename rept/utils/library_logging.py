"""Silences third-party logging, warnings and progress bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Library = Literal["transformers", "datasets"]

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "datasets", "peft")

# Single messages, by their beginning; any other warning is still shown.
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning, about its own use of torch
    "Checkpoint directory .* exists and is not empty",  # Lightning; a training resumes in its own folder
    "The dirpath has changed from",  # Lightning; a checkpoint of another folder may be resumed
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # Lightning; short epochs are usual
    "`is_gradient_checkpointing` is deprecated",  # Transformers, about PEFT's use of it
    "Couldn't infer the batch indices",  # Lightning; a row carries its own number here
    "predict returned None",  # Lightning; a batch that only keeps ranks in step has no result
    "FSDP is switching to use `NO_SHARD`",  # torch; one process has nothing to split
)


def quiet() -> None:
    """Silences the libraries' log lines below an error, Transformers' progress bars, and the warnings listed above."""
    import lightning.pytorch  # noqa: F401  it sets its loggers' levels when it is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # datasets, which takes seconds to import, is silenced where it reads
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def silence(library: Library, level: int = logging.WARNING) -> Iterator[None]:
    """While the block runs, a library logs nothing up to ``level`` and shows no warnings or progress bars.

    For callers that have not called `quiet`; everything is restored afterwards.
    """
    shown, hide, show = _bars(library)
    disabled = logging.root.manager.disable
    logging.disable(level)
    hide()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if shown:
            show()


def _bars(library: Library) -> tuple[bool, Callable[[], None], Callable[[], None]]:
    """Whether a library's progress bars are enabled, and the functions that disable and enable them."""
    if library == "datasets":
        import datasets  # imported here because it takes seconds

        return not datasets.are_progress_bars_disabled(), datasets.disable_progress_bars, datasets.enable_progress_bars
    from transformers.utils import logging as bars

    return bars.is_progress_bar_enabled(), bars.disable_progress_bar, bars.enable_progress_bar
