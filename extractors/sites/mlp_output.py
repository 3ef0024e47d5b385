"""What a block's MLP or mixture of experts adds to the residual stream."""

from __future__ import annotations

from torch import nn

from extractors.sites.reader import SingleSite
from rept.model.architecture import Architecture


class MLPOutput(SingleSite):
    """What a block's MLP or mixture of experts adds to the residual stream."""

    name = "mlp_output"

    def site(self, model: nn.Module, layer: int) -> nn.Module:
        return Architecture.of(model).mlp_output(layer)
