"""The residual stream after a block; at the last layer after the final norm, as in Transformers' ``hidden_states``."""

from __future__ import annotations

from torch import nn

from extractors.sites.reader import SingleSite
from rept.model.architecture import Architecture
from rept.types import PreTrainedModel


class ResidualStream(SingleSite):
    """The residual stream after a block; at the last layer after the final norm."""

    name = "residual_stream"

    def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
        return Architecture.of(model).residual_stream(layer)
