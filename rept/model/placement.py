"""Where a model's parameters lie: on one device, split over the ranks, or spread by Transformers in one process."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import CustomPolicy

from rept.errors import UsageError
from rept.model.architecture import Architecture


def splits(trainer: Trainer) -> bool:
    """Whether each rank holds only its share of the parameters, so that all must run the model at the same time."""
    return isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy) and trainer.world_size > 1


def is_split(model: nn.Module) -> bool:
    """Whether `place` has split ``model`` over the ranks: all must then take equally many passes, at the same time."""
    return any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())


def own_name(name: str) -> str:
    """The name of a parameter or module without the level that `FullyShardedDataParallel` puts around its units."""
    return name.replace("._fsdp_wrapped_module", "")


def check_placement(trainer: Trainer, model: Any) -> None:
    """Raises UsageError for settings of ``trainer`` and of ``model`` (the node of the configuration) that exclude one
    another, or of which one would be without effect."""
    name, precision = type(trainer.strategy).__name__, str(trainer.precision)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy | FSDPStrategy):
        raise UsageError(
            f"trainer.strategy: {name} is not one of those that attribution runs under: use ddp, or trainer=sharded "
            "to split a model over devices."
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
    """Raises UsageError for options of ``strategy`` that serve training, or would reach the blocks alone."""
    name = type(strategy).__name__
    if strategy.mixed_precision is not None or precision.endswith("-mixed"):
        raise UsageError(
            f"{name} would compute the blocks in another dtype than the rest of the model: set model.dtype instead of "
            "trainer.precision or mixed_precision."
        )
    if strategy._activation_checkpointing_kwargs:
        raise UsageError(f"{name}: activation_checkpointing serves training and would have no effect: leave it out.")
    if not strategy.kwargs["use_orig_params"]:
        raise UsageError(f"{name}: use_orig_params=false takes the weights' names, which are needed: leave it out.")


class _Untouched(FSDPPrecision):
    """Leaves batches and results as they are: Lightning's would rebuild them, which frozen dataclasses do not allow."""

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def keep_batches(trainer: Trainer) -> None:
    """Lets batches and results pass through ``trainer`` as they are, under any strategy."""
    if isinstance(trainer.strategy, FSDPStrategy):
        trainer.strategy.precision_plugin = _Untouched(trainer.precision)


def claim_device(trainer: Trainer) -> None:
    """Makes this process's GPU its default one: there Transformers puts what it quantizes while it loads."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.set_device(trainer.strategy.root_device)


def place(model: nn.Module, trainer: Trainer) -> None:
    """Brings the model to where the trainer computes; one that was brought there already stays as it is.

    Under `ModelParallelStrategy` each block becomes a unit of ``fully_shard``: every rank keeps 1 / world size of it,
    and gathers it whole while it runs. The embedding, the final norm and the output layer are a unit together.

    Under `FSDPStrategy` each block, or what the strategy's ``auto_wrap_policy`` names, is a `FullyShardedDataParallel`
    with the strategy's own options, and every rank keeps what lies in no block whole.

    Raises:
        UsageError: `FullyShardedDataParallel` cannot split this model, as where a block has weights of several dtypes.
    """
    if hasattr(model, "hf_device_map") or getattr(model, "quantization_method", None) or is_split(model):
        return  # placed by Transformers when it was loaded (moving it would undo that, or is not allowed), or here
    device = trainer.strategy.root_device
    if not splits(trainer):
        model.to(device)
    elif isinstance(trainer.strategy, FSDPStrategy):
        _wrap(model, trainer.strategy)
    else:
        # All ranks on one axis: the strategy's own mesh sets an axis apart for tensor parallelism, which is not used.
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for block in Architecture.of(model).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def _wrap(model: nn.Module, strategy: FSDPStrategy) -> None:
    """Puts the module that holds the blocks, and each of them, into a `FullyShardedDataParallel`.

    The model itself cannot be one: ``generate`` would be called past it.
    """
    name, device, blocks = type(strategy).__name__, strategy.root_device, Architecture.of(model).blocks
    paths = {module: path for path, module in model.named_modules()}
    holder = paths[blocks[0]].rpartition(".")[0].rpartition(".")[0]  # past the list
    split = {parameter for block in blocks for parameter in block.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in split]
    for tensor in (*rest, *model.buffers()):
        tensor.data = tensor.data.to(device)
    options = {
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
    if root.sharding_strategy == ShardingStrategy.NO_SHARD:  # also what comes of groups of one process
        raise UsageError(f"{name} splits nothing here (NO_SHARD): use trainer.strategy=ddp.")


def input_device(model: nn.Module) -> torch.device:
    """Where token ids must be: on the first device that holds parameters (those offloaded to a disk are on none)."""
    held = (parameter.device for parameter in model.parameters())
    return next((device for device in held if device.type != "meta"), torch.device("cpu"))
