"""The residual stream of probe rows at all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.signatures.extractor import Position
from rept.types import Batch, PreTrainedModel


def layer_states(
    model: PreTrainedModel, probe: Iterable[Batch], field: str = "representation", position: Position = "last_prompt"
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields each batch that is not empty with its states (L B D) at layers 1 to L, on the CPU."""
    layers, read = range(1, len(Architecture.of(model)) + 1), ResidualStream((field,), position)
    for batch in probe:
        if len(batch):
            yield batch, torch.stack(list(read(model, batch, layers).values())).cpu()


def probe_curves(
    model: PreTrainedModel, probe: Iterable[Batch], field: str, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns a curve for each probe row (probes ...), where ``measure`` maps states (L B D) to curves (B ...).

    Raises UsageError if the probe has no sample.
    """
    curves = [measure(states) for _, states in layer_states(model, probe, field)]
    if not curves:
        raise UsageError("The layer cannot be chosen: no training row can be attributed.")
    return torch.cat(curves)
