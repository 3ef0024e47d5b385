"""The phase transition: the layer after the deepest drop of the cosine between adjacent layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import cosine_similarity

from extractors.layers.probe import probe_curves
from rept.errors import UsageError
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel


class PhaseTransition:
    """The layer after the deepest drop of the cosine between adjacent layers (definition 1 of arXiv 2510.02334).

    ``curve[i]`` is the cosine of the residual stream's representations at layers i + 1 and i + 2, at the last prompt
    token, averaged over the probe; the later layer of its smallest value is chosen. The last value belongs to the pair
    that ends in the final norm, which changes the stream for another reason: it is in the curve, but never chosen.

    Args:
        n: training rows in the probe.
        tolerance: range (largest - smallest) of the curve's candidates below which there is no clear minimum, and the
            last layer is used.

    Raises:
        UsageError: ``n`` is less than 1.
    """

    def __init__(self, n: int = 64, tolerance: float = 0.01) -> None:
        if n < 1:
            raise UsageError(f"layers.n must be at least 1, not {n}.")
        self.probe_rows = n
        self.tolerance = tolerance

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice:
        curves = adjacent_cosine(model, probe)
        curve = curves.mean(0)
        candidates = curve[:-1]  # the last pair ends in the final norm
        last = curves.shape[1] + 1
        choice = LayerChoice([last], "", curve=curve.tolist(), probes=curves.tolist())
        if not len(candidates):
            return replace(choice, reason="There is no pair of layers before the final norm: the last layer.")
        spread = float(candidates.max() - candidates.min())
        if spread < self.tolerance:
            reason = f"The curve's range, {spread:.4f}, is below {self.tolerance:g}: no clear minimum, the last layer."
            return replace(choice, reason=reason)
        lowest = int(candidates.argmin())
        agreement = float((curves[:, :-1].argmin(1) == lowest).double().mean())
        reason = f"The cosine between adjacent layers is lowest from layer {lowest + 1} to {lowest + 2}: the later one."
        return replace(choice, layers=[lowest + 2], reason=reason, agreement=agreement)


def adjacent_cosine(model: PreTrainedModel, probe: Iterable[Batch]) -> Tensor:
    """Cosines (probes L-1) between the residual stream at layers l and l + 1, at each sample's last prompt token."""
    return probe_curves(
        model, probe, "representation", lambda states: cosine_similarity(states[:-1], states[1:], dim=-1).T
    )
