"""What a layer-selection strategy is, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:  # the report reads this file too, and torch takes seconds
    from transformers import PreTrainedModel

    from rept.types import Batch


ADJACENT_COSINE = "cosine of adjacent layers"


@dataclass(frozen=True)
class LayerChoice:
    """The layers that are read, and why."""

    layers: list[int]  # from 1
    reason: str  # one sentence for the user
    curve: list[float] | None = None  # what was looked at, averaged over the probe
    measure: str = ADJACENT_COSINE  # what the curve holds
    first: int = 2  # the layer that its first value belongs to, of a pair the later one
    agreement: float | None = None  # share of single probes that lead to the same choice
    probes: list[list[float]] | None = None  # the curve of each probe


@runtime_checkable
class LayerStrategy(Protocol):
    """Chooses layers for a model.

    Attributes:
        probe_rows: how many training rows it wants to see; 0 for a strategy that needs none.
    """

    probe_rows: int

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice: ...


@runtime_checkable
class LabelledLayerStrategy(Protocol):
    """A layer strategy that also sees labels. Half of its probe rows are planted ones, as far as there are enough.

    Attributes:
        probe_rows: as in `LayerStrategy`.
        reads_labels: True.
    """

    probe_rows: int
    reads_labels: Literal[True]

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch], labels: Mapping[int, str | None]) -> LayerChoice:
        """``labels`` are those of the probe rows by row number, None for a clean row."""
        ...
