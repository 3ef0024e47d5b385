"""What a layer-selection strategy is, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the report reads this file too, and torch takes seconds
    from torch import nn

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


class LayerStrategy(Protocol):
    """A callable that chooses layers for a model.

    One with an attribute ``labelled = True`` is given labels too, as a third argument: that of each probe row by its
    number, None for a clean one; half of its probe rows are planted ones then, where there are so many.

    Attributes:
        probe_rows: how many rows of the training data it wants to see; 0 for a strategy that needs none.
    """

    probe_rows: int

    def __call__(self, model: nn.Module, probe: Iterable[Batch]) -> LayerChoice: ...
