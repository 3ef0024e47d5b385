"""The interface of extractors, and the protocols of what some of them can do in addition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

from torch import nn

from rept.types import FIELDS, Batch, PreTrainedModel, PreTrainedTokenizerBase, Signature

# Where a field is read: at the last prompt token, which predicts the first response token; averaged over all positions
# that predict a response token; averaged over all positions of prompt and response.
Position = Literal["last_prompt", "response_mean", "text_mean"]
POSITIONS: tuple[Position, ...] = get_args(Position)


class Extractor(ABC):
    """Reads the signature of each sample of a batch from a model."""

    fields: tuple[str, ...]  # the fields that this extractor gives
    fit_rows: int | None = 0  # training rows, drawn with the run's seed, that `fit` is called with; None: all
    comparable: bool = True  # whether cosines measure similarity between any two samples, on either side
    symmetric: bool = True  # whether a sample has the same signature as a training row and as a query

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - optional
        """Receives the model and its tokenizer before extraction; raises UsageError if they do not fit."""

    def content(self) -> Mapping[str, str]:
        """Returns fingerprints, by name, of what else the signatures depend on, once attached."""
        return {}

    def fit(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:  # noqa: B027 - optional
        """Learns from training batches before extraction; must give the same result for the same batches."""

    @abstractmethod
    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        """Returns one block (B D) in float32 for each site, layer and field. Layers count from 1; -1 is the last."""


@runtime_checkable
class ReadsAllPositions(Protocol):
    """An extractor that also reads every position, which token scores need."""

    def all_positions(
        self, model: PreTrainedModel, batch: Batch, layers: Sequence[int], fields: Sequence[str] = FIELDS
    ) -> Signature:
        """Returns representation, gradient or both at all positions, each (B T D) in float32."""
        ...


class Site(NamedTuple):
    """One module of a model whose output is read."""

    name: str  # as in Key.site
    layer: int  # from 1


class Reading(NamedTuple):
    """What one field of a signature holds of a site."""

    quantity: str  # representation or gradient
    position: Position


@runtime_checkable
class ReadsSites(Protocol):
    """An extractor whose fields are read at sites without further computation, so that `verify` can check them."""

    @property
    def readings(self) -> Mapping[str, Reading]:
        """What each field holds; without the fields that are computed from several readings."""
        ...

    def sites(self, model: PreTrainedModel, layers: Sequence[int]) -> Mapping[Site, nn.Module]:
        """Returns the modules whose outputs are read, with -1 resolved to the number of the last layer."""
        ...
