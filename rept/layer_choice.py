"""What a layer-selection strategy is, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from rept.signature import Batch


@dataclass(frozen=True)
class LayerChoice:
    """The layers that are read, and why."""

    layers: list[int]  # from 1
    reason: str  # one sentence for the user
    curve: list[float] | None = None  # what was looked at, averaged over the probe
    agreement: float | None = None  # share of single probes that lead to the same choice
    probes: list[list[float]] | None = None  # the curve of each probe


class LayerSelector(Protocol):
    """A callable that chooses layers for a model.

    Attributes:
        probe_rows: how many rows of the training data it wants to see; 0 for a strategy that needs none.
    """

    probe_rows: int

    def __call__(self, model: nn.Module, probe: Batch | Iterable[Batch]) -> LayerChoice: ...
