"""Builds Lightning's Trainer from a configuration."""

from __future__ import annotations

import os
from datetime import timedelta

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

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

    Raises UsageError if Lightning refuses the arguments, or they are for fewer processes than torchrun has started.
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


def set_timeout(trainer: Trainer, max_wait: float) -> None:
    """Limits how many seconds the ranks of ``trainer`` wait for one another, a minute at least: they load a model.

    Raises:
        UsageError: ranks that are forked or spawned, and run only a part of the program.
        RuntimeError: this version of Lightning keeps the limit elsewhere.
    """
    if trainer.world_size == 1:
        return
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UsageError("trainer.strategy: expected one that starts each process by the same command, such as ddp.")
    settings = vars(trainer.strategy)
    if "_timeout" not in settings:
        raise RuntimeError(f"Expected Lightning's {type(trainer.strategy).__name__} to have _timeout, but it has not.")
    settings["_timeout"] = timedelta(seconds=max(max_wait, 60))
