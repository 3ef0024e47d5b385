"""The interface of an extractor, and what some extractors can do besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rept.types import Batch, Signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Extractor(ABC):
    """Reads the signature of each sample of a batch from a model."""

    fields: tuple[str, ...]  # the fields that this extractor gives
    fit_rows: int | None = 0  # training rows, drawn with the run's seed, that `fit` is called with; None: all
    comparable: bool = True  # whether cosines measure similarity between any two samples, whichever side they are on

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - optional
        """Receives the model and its tokenizer before anything is read; raises UsageError if they do not fit."""

    def content(self) -> Mapping[str, str]:
        """Fingerprints, by name, of what else the signatures depend on, once attached."""
        return {}

    def fit(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:  # noqa: B027 - optional
        """Learns from training batches before extraction; must give the same result for the same batches."""

    @abstractmethod
    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        """One block (B D) in float32 for each site, layer and field. Layers count from 1; -1 is the last."""


@runtime_checkable
class ReadsAllPositions(Protocol):
    """An extractor that also gives the states at every position, which token scores need."""

    def all_positions(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        """Representation and gradient at all positions, each (B T D) in float32."""
        ...
