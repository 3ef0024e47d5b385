"""The interface of layer strategies, which choose the layers that are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from rept.types import Batch, PreTrainedModel

ADJACENT_COSINE = "cosine of adjacent layers"


@dataclass(frozen=True)
class LayerChoice:
    """The layers that are read, and why."""

    layers: list[int]  # from 1
    reason: str  # one sentence for the user
    curve: list[float] | None = None  # one value of the measure a layer (or pair of layers), averaged over the probe
    measure: str = ADJACENT_COSINE  # what the values of the curve are
    first: int = 2  # the layer of the curve's first value; of a pair, the later layer
    agreement: float | None = None  # share of the probe rows whose own curve leads to the same choice
    probes: list[list[float]] | None = None  # the curve of each probe row


@runtime_checkable
class LayerStrategy(Protocol):
    """Chooses layers for a model."""

    probe_rows: int  # number of training rows in the probe; 0 for a strategy that needs none

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice: ...


@runtime_checkable
class LabelledLayerStrategy(Protocol):
    """A layer strategy that also reads labels. Half of its probe rows are planted ones, if there are enough."""

    probe_rows: int
    reads_labels: Literal[True]

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch], labels: Mapping[int, str | None]) -> LayerChoice:
        """``labels`` are those of the probe rows by row number, None for a clean row."""
        ...
