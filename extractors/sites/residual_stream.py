"""The residual stream after a block; at the last layer after the final norm, as in Transformers' ``hidden_states``."""

from __future__ import annotations

from torch import nn

from extractors.sites.reader import SingleSite
from rept.model.architecture import Architecture


class ResidualStream(SingleSite):
    """``hidden_states`` of Transformers: the stream after a block; at the last layer, after the final norm."""

    name = "residual_stream"

    def site(self, model: nn.Module, layer: int) -> nn.Module:
        return Architecture.of(model).residual_stream(layer)
