"""Several layers: those after the deepest drops of the cosine between adjacent layers."""

from __future__ import annotations

from collections.abc import Iterable

from extractors.layers.phase_transition import adjacent_cosine
from rept.errors import UsageError
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel


class DeepestDrops:
    """The layers after the k deepest drops of the cosine between adjacent layers; their scores are averaged.

    If two drops are nearly as deep, which one is the minimum depends on the probe. The curve and its candidates are
    those of `extractors.layers.phase_transition.PhaseTransition`.

    Args:
        n: training rows in the probe.
        k: layers; all candidates if the model has fewer, and the last layer if it has none.

    Raises:
        UsageError: ``n`` or ``k`` is less than 1.
    """

    def __init__(self, n: int = 64, k: int = 2) -> None:
        if n < 1 or k < 1:
            raise UsageError(f"Expected layers.n and layers.k to be at least 1, but got {n} and {k}.")
        self.probe_rows = n
        self.k = k

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice:
        curves = adjacent_cosine(model, probe)
        curve = curves.mean(0)
        candidates = curve[:-1]  # the last pair ends in the final norm
        layers = sorted((candidates.argsort(stable=True)[: self.k] + 2).tolist()) or [len(curve) + 1]
        reason = (
            f"The cosine between adjacent layers drops most before layers {', '.join(map(str, layers))}; their scores "
            "are averaged."
        )
        if not len(candidates):
            reason = "There is no pair of layers before the final norm: the last layer."
        return LayerChoice(layers, reason, curve=curve.tolist(), probes=curves.tolist())
