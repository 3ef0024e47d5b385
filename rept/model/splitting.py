"""Whether a model is split over ranks, without the libraries that split it."""

from __future__ import annotations

import sys

from torch import nn


def is_split(model: nn.Module) -> bool:
    """Whether `place` has split ``model`` over the ranks: all must then take the same number of passes, together."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever splits a model has imported it; it takes a second
    return fsdp is not None and any(
        isinstance(module, fsdp.FSDPModule | fsdp.FullyShardedDataParallel) for module in model.modules()
    )


def own_name(name: str) -> str:
    """Returns the name of a parameter or module without the level that `FullyShardedDataParallel` adds."""
    return name.replace("._fsdp_wrapped_module", "")
