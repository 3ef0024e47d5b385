"""The nouns that every room shares: Batch, Status, Key, Signature.

Axis legend, used in all shape comments of the project:
    B  samples of a batch        T  token positions, right padded
    D  width of a representation N  rows of the training data      Q  queries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Side = Literal["train", "query"]
SIDES: tuple[Side, Side] = ("query", "train")  # in the order of extraction

FIELDS = ("representation", "gradient")  # what a site gives

IGNORE = -100  # label of positions that carry no loss, as in torch's cross_entropy


class Key(NamedTuple):
    """Names one block of a signature; joined by ``/`` it is the block's HDF5 path."""

    site: str  # "residual_stream", "attention_output", "mlp_output", or an extractor's own word
    layer: int  # from 1; 0 for what belongs to no layer
    field: str  # "representation", "gradient", or an extractor's own word

    @property
    def path(self) -> str:
        return f"{self.site}/{self.layer}/{self.field}"

    @classmethod
    def parse(cls, path: str) -> Key:
        """The inverse of :attr:`path`."""
        site, layer, field = path.split("/")
        return cls(site, int(layer), field)


Signature = dict[Key, Tensor]  # each (B D), float32


class Status(IntEnum):
    """What became of an input row. Stored as one byte; the order is part of the store's schema."""

    ATTRIBUTED = 0
    CUT = 1  # attributed, but its response was cut at max_length
    EMPTY_PROMPT = 2
    EMPTY_RESPONSE = 3
    PROMPT_TOO_LONG = 4  # no response token is left within max_length
    NOT_A_STRING = 5
    MALFORMED = 6  # chat messages that end in no assistant turn, or that the template refuses
    NON_FINITE = 7  # the loss, a representation or a gradient is NaN or infinite

    @property
    def attributed(self) -> bool:
        return self <= Status.CUT

    @property
    def reason(self) -> str:
        """The status as a person reads it."""
        return _REASONS[self]


_REASONS = {
    Status.ATTRIBUTED: "attributed",
    Status.CUT: "attributed, response cut at max_length",
    Status.EMPTY_PROMPT: "empty prompt",
    Status.EMPTY_RESPONSE: "empty response",
    Status.PROMPT_TOO_LONG: "no response token left within max_length",
    Status.NOT_A_STRING: "prompt or response is not a string",
    Status.MALFORMED: "malformed chat messages",
    Status.NON_FINITE: "non-finite loss, representation or gradient",
}


@dataclass(frozen=True)
class Batch:
    """Samples of one side, tokenized and right padded. Padding comes last, so a causal model needs no mask.

    ``set_aside`` travels along so that the rows that no model can see still reach the store with their reason.
    """

    input_ids: Tensor  # (B T)
    labels: Tensor  # (B T) the token itself at response positions (unshifted), IGNORE elsewhere
    prompt_end: Tensor  # (B) column of the last prompt token: the position that predicts the first response token
    length: Tensor  # (B) tokens that are not padding
    row: Tensor  # (B) row number in the side's data, from 0
    cut: Tensor  # (B) bool: the response was cut at max_length
    side: Side
    text: tuple[tuple[str, str], ...]  # (prompt, response) of each sample, for extractors that read text
    set_aside: tuple[tuple[int, Status], ...] = ()  # (row, reason)
    company: bool = False  # run so that all ranks take equally many steps; what comes of its rows is not to be kept

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device | str, **_: object) -> Batch:
        """The batch with its tensors on ``device`` (Lightning calls this before each step)."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def select(self, samples: Sequence[int]) -> Batch:
        """A smaller batch of the given samples, trimmed to their longest; ``set_aside`` stays behind."""
        index = torch.as_tensor(samples, dtype=torch.int64, device=self.row.device)
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
    """What a predict step gives for one batch: each row's status and signature, rows set aside included."""

    row: Tensor  # (B) int64
    status: Tensor  # (B) uint8, see Status
    side: Side
    signature: Signature  # each (B D); zeros where the status says that there is none; empty if no row has one
