"""Lightning's FSDPStrategy where there is no GPU: it does nothing but allow the CPU."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class FSDPOnCPU(FSDPStrategy):
    """Lightning refuses FSDPStrategy itself, and not what is derived from it, where there is no GPU."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """As Lightning's, which names the device by its index: a CPU has none, and torch then looks for a GPU."""
        return FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,
            **self.kwargs,
        )
