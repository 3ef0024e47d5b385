"""Layer strategies that need no probe: named layers, a share of the depth, the last layer, all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel


class LastLayer:
    """The last layer; the residual stream is read after the final norm there."""

    probe_rows = 0

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch] = ()) -> LayerChoice:
        return LayerChoice([len(Architecture.of(model))], "The last layer, as configured.")


class FixedLayers:
    """The given layer or layers, from 1; -1 is the last.

    Raises:
        UsageError: no layers, or not only numbers; when called, a layer that the model does not have.
    """

    probe_rows = 0

    def __init__(self, layers: int | Sequence[int]) -> None:
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        if not self.layers:
            raise UsageError("layers.layers is empty: name at least one layer, such as layers.layers=[4].")
        if any(type(layer) is not int for layer in self.layers):
            raise UsageError(f"Expected layers.layers to be layer numbers, such as 4 or [4,8], but got {layers!r}.")

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch] = ()) -> LayerChoice:
        architecture = Architecture.of(model)
        numbers = dict.fromkeys(architecture.layer(layer) for layer in self.layers)  # each once, in the order given
        return LayerChoice(list(numbers), "As given.")


class FractionOfDepth:
    """The layer nearest to a ``fraction`` of the depth, at least 1.

    Raises:
        UsageError: a fraction outside 0 to 1.
    """

    probe_rows = 0

    def __init__(self, fraction: float) -> None:
        if not 0 <= fraction <= 1:
            raise UsageError(f"layers.fraction must lie between 0 and 1, not {fraction}.")
        self.fraction = fraction

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch] = ()) -> LayerChoice:
        depth = len(Architecture.of(model))
        return LayerChoice([max(1, round(self.fraction * depth))], f"{self.fraction:g} of {depth} layers, rounded.")


class EveryLayer:
    """All layers; their scores are averaged."""

    probe_rows = 0

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch] = ()) -> LayerChoice:
        return LayerChoice(list(range(1, len(Architecture.of(model)) + 1)), "All layers, as configured.")
