"""Places a model on one device, splits it over the ranks, or leaves it where Transformers distributed it."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import CustomPolicy

from rept.config.schema import ModelConfig
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.splitting import is_split
from rept.types import PreTrainedModel


def splits(trainer: Trainer) -> bool:
    """Whether each rank has only a share of the parameters, so that all must run the model at the same time."""
    return isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy) and trainer.world_size > 1


def check_placement(trainer: Trainer, model: ModelConfig) -> None:
    """Raises UsageError for settings of trainer and model that exclude one another, or that would have no effect."""
    name, precision = type(trainer.strategy).__name__, str(trainer.precision)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy | FSDPStrategy):
        raise UsageError(
            f"trainer.strategy: {name} is not supported by attribution: use ddp, or trainer=sharded to split a model "
            "over devices."
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        _check_options(trainer.strategy, precision)
    if precision.endswith("-true") and precision != "32-true":
        raise UsageError(f"trainer.precision={precision} would not change the weights' dtype: set model.dtype instead.")
    if model.device_map is not None and trainer.world_size > 1:
        raise UsageError(
            f"model.device_map={model.device_map} spreads the model of one process over the devices, but there are "
            f"{trainer.world_size} processes: set trainer.devices=1, or use trainer=sharded without model.device_map."
        )
    if splits(trainer) and (model.load_in_4bit or model.load_in_8bit):
        raise UsageError("Quantized weights cannot be split over devices: use model.device_map=auto in one process.")


def _check_options(strategy: FSDPStrategy, precision: str) -> None:
    """Raises UsageError for options that only apply to training, or would only apply to the blocks."""
    name = type(strategy).__name__
    if strategy.mixed_precision is not None or precision.endswith("-mixed"):
        raise UsageError(
            f"{name} would compute the blocks in another dtype than the rest of the model: set model.dtype instead of "
            "trainer.precision or mixed_precision."
        )
    if strategy._activation_checkpointing_kwargs:
        raise UsageError(f"{name}: activation_checkpointing only applies to training: leave it out.")
    if not strategy.kwargs["use_orig_params"]:
        raise UsageError(f"{name}: use_orig_params=false removes the weights' names, which are needed: leave it out.")


class _Unconverted(FSDPPrecision):
    """Does not convert batches and results: Lightning would rebuild them, which frozen dataclasses do not allow."""

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def keep_batches(trainer: Trainer) -> None:
    """Stops ``trainer`` from converting batches and results, under any strategy."""
    if isinstance(trainer.strategy, FSDPStrategy):
        precision: Any = trainer.precision
        trainer.strategy.precision_plugin = _Unconverted(precision)


def claim_device(trainer: Trainer) -> None:
    """Makes this process's GPU the current one, where Transformers puts what it quantizes while it loads."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.set_device(trainer.strategy.root_device)


def place(model: PreTrainedModel, trainer: Trainer) -> None:
    """Moves the model to the trainer's device, or splits it over the devices; a placed model stays as it is.

    Under `ModelParallelStrategy` each block becomes a unit of ``fully_shard``: every rank keeps 1 / world size of it,
    and gathers all of it while it runs. The embedding, the final norm and the output layer are one more unit.

    Under `FSDPStrategy` each block, or each module that the strategy's ``auto_wrap_policy`` names, is a
    `FullyShardedDataParallel` with the strategy's own options, and every rank keeps whatever is outside the blocks.

    Raises:
        UsageError: `FullyShardedDataParallel` cannot split this model, for example a block with several dtypes.
    """
    if hasattr(model, "hf_device_map") or getattr(model, "quantization_method", None) or is_split(model):
        return  # placed before; moving what Transformers placed would undo that, or is not allowed
    device = trainer.strategy.root_device
    if not splits(trainer):
        nn.Module.to(model, device)  # Transformers' own `to` has no usable type
    elif isinstance(trainer.strategy, FSDPStrategy):
        _wrap(model, trainer.strategy)
    else:
        # All ranks on one axis: the strategy's own mesh has a second one for tensor parallelism, which is not used.
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for block in Architecture.of(model).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def _wrap(model: PreTrainedModel, strategy: FSDPStrategy) -> None:
    """Wraps the module that contains the blocks, and each block, in a `FullyShardedDataParallel`.

    The model itself cannot be wrapped, because ``generate`` would bypass the wrapper.
    """
    name, device, blocks = type(strategy).__name__, strategy.root_device, Architecture.of(model).blocks
    paths = {module: path for path, module in model.named_modules()}
    holder = paths[blocks[0]].rpartition(".")[0].rpartition(".")[0]  # of the list
    split = {parameter for block in blocks for parameter in block.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in split]
    for tensor in (*rest, *model.buffers()):
        tensor.data = tensor.data.to(device)
    options: dict[str, Any] = {
        "sharding_strategy": strategy.sharding_strategy,
        "cpu_offload": strategy.cpu_offload,
        "auto_wrap_policy": CustomPolicy(lambda module: module in blocks),
        **strategy.kwargs,
    }
    try:
        root = FullyShardedDataParallel(model.get_submodule(holder), device_id=device, ignored_states=rest, **options)
        model.set_submodule(holder, root)
    except ValueError as error:
        raise UsageError(f"{name} cannot split this model ({error}): use trainer=sharded.") from error
    if root.sharding_strategy == ShardingStrategy.NO_SHARD:  # also the result for groups of one process
        raise UsageError(f"{name} splits nothing here (NO_SHARD): use trainer.strategy=ddp.")


def input_device(model: nn.Module) -> torch.device:
    """Returns the device for token ids: that of the first parameter which is not offloaded to a disk."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))
