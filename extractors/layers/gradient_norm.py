"""The layer by the size of its gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch


class GradientNorm:
    """The layer whose representation gradient is largest: where the loss responds most to what the stream holds.

    ``curve[i]`` is the norm of dL/dH of the residual stream at layer i + 1, at the last prompt token, averaged over the
    probe. The last layer is told, but chosen only if it is the only one: it is read after the final norm, which scales
    the gradient for another reason.

    Args:
        n: rows of the training data to look at.

    Raises:
        UsageError: ``n`` is less than 1; when called, the probe holds no sample.
    """

    def __init__(self, n: int = 64) -> None:
        if n < 1:
            raise UsageError(f"layers.n must be at least 1, not {n}.")
        self.probe_rows = n

    def __call__(self, model: nn.Module, probe: Iterable[Batch]) -> LayerChoice:
        layers = range(1, len(Architecture.of(model)) + 1)
        read = ResidualStream(fields=("gradient",))
        norms = [
            torch.stack([block.norm(dim=1).cpu() for block in read(model, batch, layers).values()], dim=1)  # (B L)
            for batch in probe
            if len(batch)
        ]
        if not norms:
            raise UsageError("The layer cannot be chosen: no training row can be attributed.")
        curves = torch.cat(norms)
        candidates = curves[:, : max(1, len(layers) - 1)]
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
