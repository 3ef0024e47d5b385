"""Builds Lightning's Trainer from a configuration."""

from __future__ import annotations

import os

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
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
        UsageError: Lightning refuses the arguments, or they are for fewer processes than torchrun has started.
    """
    quiet()
    try:
        trainer = build(
            node,
            Trainer,
            use_distributed_sampler=False,  # batches are partitioned by the batch plan
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from None
    started = int(os.environ.get("WORLD_SIZE", 1)) if TorchElasticEnvironment.detect() else 1
    if started > trainer.world_size:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", started))
        raise UsageError(
            f"Expected a trainer for the {started} processes that torchrun has started, but got one for "
            f"{trainer.world_size}: set trainer.devices={devices} trainer.num_nodes={started // devices} "
            "trainer.strategy=ddp, or start one process."
        )
    return trainer
