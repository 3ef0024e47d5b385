"""What a block's MLP or mixture of experts adds to the residual stream."""

from __future__ import annotations

from torch import nn

from extractors.sites.reader import SingleSite
from rept.model.architecture import Architecture
from rept.types import PreTrainedModel


class MLPOutput(SingleSite):
    """What a block's MLP or mixture of experts adds to the residual stream."""

    name = "mlp_output"

    def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
        return Architecture.of(model).mlp_output(layer)
