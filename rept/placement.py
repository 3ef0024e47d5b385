"""Where a model's parameters lie: on one device, split over the ranks, or spread by Transformers in one process."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from rept.architecture import Architecture
from rept.errors import UsageError


def splits(trainer: Trainer) -> bool:
    """Whether each rank holds only its share of the parameters, so that all must run the model at the same time."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def check_placement(trainer: Trainer, model: Any) -> None:
    """Raises UsageError for settings of ``trainer`` and of ``model`` (the node of the configuration) that exclude one
    another, or of which one would be without effect."""
    name, precision = type(trainer.strategy).__name__, str(trainer.precision)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise UsageError(
            f"trainer.strategy: {name} is not one of those that attribution runs under: use ddp, or trainer=sharded "
            "to split a model over devices."
        )
    if precision.endswith("-true") and precision != "32-true":
        raise UsageError(f"trainer.precision={precision} would not change the weights' dtype: set model.dtype instead.")
    if model.device_map is not None and trainer.world_size > 1:
        raise UsageError(
            f"model.device_map={model.device_map} spreads the model of one process over the devices, but there are "
            f"{trainer.world_size} processes: set trainer.devices=1, or use trainer=sharded without model.device_map."
        )
    if splits(trainer) and (model.load_in_4bit or model.load_in_8bit):
        raise UsageError("Quantized weights cannot be split over devices: use model.device_map=auto in one process.")


def claim_device(trainer: Trainer) -> None:
    """Makes this process's GPU its default one: there Transformers puts what it quantizes while it loads."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.set_device(trainer.strategy.root_device)


def place(model: nn.Module, trainer: Trainer) -> None:
    """Brings the model to where the trainer computes; one that was brought there already stays as it is.

    Under `ModelParallelStrategy` each block becomes a unit of ``fully_shard``: every rank keeps 1 / world size of it,
    and gathers it whole while it runs. The embedding, the final norm and the output layer are a unit together.
    """
    if hasattr(model, "hf_device_map") or getattr(model, "quantization_method", None):
        return  # placed by Transformers when it was loaded; moving it would undo that, or is not allowed
    device = trainer.strategy.root_device
    if not splits(trainer):
        model.to(device)
    elif not isinstance(model, FSDPModule):
        # All ranks on one axis: the strategy's own mesh sets an axis apart for tensor parallelism, which is not used.
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for block in Architecture.of(model).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def input_device(model: nn.Module) -> torch.device:
    """Where token ids must be: on the first device that holds parameters (those offloaded to a disk are on none)."""
    held = (parameter.device for parameter in model.parameters())
    return next((device for device in held if device.type != "meta"), torch.device("cpu"))
