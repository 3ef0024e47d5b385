"""Builds Lightning's Trainer from a configuration."""

from __future__ import annotations

from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from rept.config.plug_ins import build
from rept.config.schema import Node
from rept.errors import UsageError
from rept.utils.library_logging import quiet


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Returns the callbacks of a trainer, a list that may be changed."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of Lightning
    return callbacks


def build_trainer(node: Node, **settings: object) -> Trainer:
    """Returns the Trainer that ``node`` describes, with ``settings`` of ours.

    Raises:
        UsageError: Lightning refuses the arguments.
    """
    quiet()
    try:
        return build(
            node,
            Trainer,
            use_distributed_sampler=False,  # batches are partitioned by the batch plan
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from None
