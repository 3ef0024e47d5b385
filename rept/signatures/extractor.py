"""The interface of an extractor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rept.types import Batch, Signature


class Extractor(ABC):
    """Reads the signature of each sample of a batch out of a model."""

    fields: tuple[str, ...]  # what this instance gives
    fit_rows: int | None = 0  # training rows, drawn with the run's seed, that `fit` is called with; None: all
    comparable: bool = True  # whether cosines say how alike two samples are, whichever side each is on

    def attach(self, model: nn.Module, tokenizer: Any) -> None:  # noqa: B027 - most need no more than each batch
        """Takes the model and its tokenizer, before anything is read; raises UsageError where they do not fit."""

    def content(self) -> Mapping[str, str]:
        """Fingerprints, by name, of what else the signatures are made from, once attached."""
        return {}

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> None:  # noqa: B027 - most extractors learn nothing
        """Learns from training batches before anything is extracted; must give the same for the same batches."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        """One block (B D) in float32 for each site, layer and field. Layers count from 1, -1 is the last."""
