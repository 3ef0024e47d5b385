"""What a block's attention adds to the residual stream."""

from __future__ import annotations

from torch import nn

from extractors.sites.reader import SingleSite
from rept.model.architecture import Architecture
from rept.types import PreTrainedModel


class AttentionOutput(SingleSite):
    """What a block's attention adds to the residual stream."""

    name = "attention_output"

    def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
        return Architecture.of(model).attention_output(layer)
