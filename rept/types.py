"""Core data types: Batch, Status, Key, Signature, Extraction.

Axes in the shape comments of the project:
    B  samples of a batch        T  token positions, right padded
    D  width of a representation N  rows of the training data      Q  queries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:  # these libraries take seconds to import
    import torch
    import transformers
    from torch import Tensor

PreTrainedModel: TypeAlias = "transformers.PreTrainedModel"
PreTrainedTokenizerBase: TypeAlias = "transformers.PreTrainedTokenizerBase"

Side = Literal["train", "query"]
SIDES: tuple[Side, Side] = ("query", "train")  # in the order of extraction
TEXT = "text"  # field of a text's own bytes, which have no direction
FIELDS = ("representation", "gradient")  # what a site gives
IGNORE = -100  # label of positions without loss, as in torch's cross_entropy


class Key(NamedTuple):
    """The name of one block of a signature; joined by ``/`` it is the block's HDF5 path."""

    site: str  # "residual_stream", "attention_output", "mlp_output", or an extractor's own word
    layer: int  # from 1; 0 for what belongs to no layer
    field: str  # "representation", "gradient", or an extractor's own word

    @property
    def path(self) -> str:
        return f"{self.site}/{self.layer}/{self.field}"

    @classmethod
    def parse(cls, path: str) -> Key:
        """Returns the key of a :attr:`path`."""
        site, layer, field = path.split("/")
        return cls(site, int(layer), field)


Signature: TypeAlias = "dict[Key, Tensor]"  # each (B D), float32


class Status(IntEnum):
    """The outcome of an input row. Stored as one byte; the order is part of the store's schema."""

    ATTRIBUTED = 0
    CUT = 1  # attributed, but its response was cut at max_length
    EMPTY_PROMPT = 2
    EMPTY_RESPONSE = 3
    PROMPT_TOO_LONG = 4  # no response token is left within max_length
    NOT_A_STRING = 5
    MALFORMED = 6  # messages without an assistant turn at the end or refused by the template, labels, spans, columns
    NON_FINITE = 7  # the loss, a representation or a gradient is NaN or infinite

    @property
    def attributed(self) -> bool:
        return self <= Status.CUT

    @property
    def reason(self) -> str:
        """The status in words."""
        return _REASONS[self]


_REASONS = (
    "attributed",
    "attributed, response cut at max_length",
    "empty prompt",
    "empty response",
    "no response token left within max_length",
    "prompt or response is not a string",
    "malformed chat messages, label, spans or columns",
    "non-finite loss, representation or gradient",
)


@dataclass(frozen=True)
class Batch:
    """Tokenized samples of one side, right padded: padding comes last, so a causal model needs no attention mask.

    ``set_aside`` lists rows that cannot be run, so that they reach the store with their reason.
    """

    input_ids: Tensor  # (B T)
    labels: Tensor  # (B T) the token itself at response positions (unshifted), IGNORE elsewhere
    prompt_end: Tensor  # (B) column of the last prompt token: the position that predicts the first response token
    length: Tensor  # (B) tokens without padding
    row: Tensor  # (B) row number in the side's data, from 0
    cut: Tensor  # (B) bool: the response was cut at max_length
    side: Side
    text: tuple[tuple[str, str], ...]  # (prompt, response) of each sample, for extractors that read text
    set_aside: tuple[tuple[int, Status], ...] = ()  # (row, reason)
    filler: bool = False  # run only because other ranks run a batch too: its result is dropped

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device | str, **_: object) -> Batch:
        """Returns the batch with its tensors on ``device`` (Lightning calls this before each step)."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            prompt_end=self.prompt_end.to(device),
            length=self.length.to(device),
            row=self.row.to(device),
            cut=self.cut.to(device),
        )

    def select(self, samples: Sequence[int]) -> Batch:
        """Returns a batch of the given samples, trimmed to their longest, without ``set_aside``."""
        index = self.row.new_tensor(samples)  # int64
        width = int(self.length[index].max()) if len(samples) else 0
        return Batch(
            input_ids=self.input_ids[index, :width],
            labels=self.labels[index, :width],
            prompt_end=self.prompt_end[index],
            length=self.length[index],
            row=self.row[index],
            cut=self.cut[index],
            side=self.side,
            text=tuple(self.text[i] for i in samples),
        )


@dataclass(frozen=True)
class Extraction:
    """The result of a predict step for one batch: status and signature of each row, rows set aside included."""

    row: Tensor  # (B) int64
    status: Tensor  # (B) uint8, see Status
    side: Side
    signature: Signature  # each (B D); zeros for rows without a signature; empty if no row has one
