"""One place that keeps the libraries' own talk off the screen, so that what a run prints is the run's own voice."""

from __future__ import annotations

import logging
import warnings

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "datasets", "peft")

# Single messages, by how they begin: whatever is not listed, a new library's warning or a user's own, is still shown.
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning, about its own use of torch
    "Checkpoint directory .* exists and is not empty",  # Lightning; a training goes on in its own folder
    "The dirpath has changed from",  # Lightning; a checkpoint of another folder may be named
    "Couldn't infer the batch indices",  # Lightning; a row carries its own number here
    "predict returned None",  # Lightning; a rank that only keeps others company has nothing to keep
    "FSDP is switching to use `NO_SHARD`",  # torch; one process alone has nothing to split
)


def quiet() -> None:
    """Silences the libraries' log lines below an error, their progress bars, and the warnings listed above."""
    import datasets
    import lightning.pytorch  # noqa: F401  it sets its loggers' levels when it is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
