"""The layer with the largest representation gradient."""

from __future__ import annotations

from collections.abc import Iterable

from extractors.layers.probe import probe_curves
from rept.errors import UsageError
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel


class GradientNorm:
    """The layer whose representation gradient is largest, where the loss depends most on the residual stream.

    ``curve[i]`` is the norm of dL/dH of the residual stream at layer i + 1, at the last prompt token, averaged over the
    probe of ``n`` training rows. The last layer is in the curve, but only chosen if it is the only one: it is read
    after the final norm, which scales the gradient for another reason.

    Raises:
        UsageError: ``n`` is less than 1; when called, the probe has no sample.
    """

    def __init__(self, n: int = 64) -> None:
        if n < 1:
            raise UsageError(f"layers.n must be at least 1, not {n}.")
        self.probe_rows = n

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice:
        curves = probe_curves(model, probe, "gradient", lambda states: states.norm(dim=2).T)  # (probes L)
        candidates = curves[:, : max(1, curves.shape[1] - 1)]
        chosen = int(candidates.mean(0).argmax())
        return LayerChoice(
            [chosen + 1],
            f"The representation gradient is largest at layer {chosen + 1}.",
            curve=curves.mean(0).tolist(),
            measure="norm of the representation gradient",
            first=1,
            agreement=float((candidates.argmax(1) == chosen).double().mean()),
            probes=curves.tolist(),
        )
