"""Samples, and the sources that they are read from."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rept.types import Status
from rept.utils.digests import text_digest

if TYPE_CHECKING:
    import pandas  # an optional library

Message = Mapping[str, Any]  # one chat turn: "role" and "content", and any other keys that the chat template reads


def content_of(message: Message) -> str:
    """Returns a message's text; a turn that only calls tools has none."""
    return message.get("content") or ""


SpanKind = Literal["trigger", "payload"]


@dataclass(frozen=True)
class Span:
    """Characters that carry the poison: the ground truth of token-level measures.

    A ``trigger`` causes the behaviour, a ``payload`` shows it. Without a kind, characters of a prompt are a trigger and
    those of a response are a payload.
    """

    part: Literal["prompt", "response"]
    start: int  # in characters of Sample.prompt or Sample.response
    end: int
    kind: SpanKind | None = None  # never None once the span exists

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", "trigger" if self.part == "prompt" else "payload")


@dataclass(frozen=True)
class Sample:
    """A prompt, as chat messages, and its response."""

    messages: tuple[Message, ...]  # everything before the response
    response: str | None  # None: a query that the model answers itself
    label: str | None = None
    spans: tuple[Span, ...] = ()

    @property
    def prompt(self) -> str:
        """The content of a single message, or one "role: content" line for each message; for display."""
        return "\n".join(role + content_of(message) for role, message in self._with_roles())

    @property
    def text(self) -> str:
        """Prompt and response, by which rows are compared with one another."""
        return f"{self.prompt}\n{self.response}"

    @property
    def content_starts(self) -> list[int]:
        """Where each message's content starts in :attr:`prompt`."""
        starts, end = [], 0
        for role, message in self._with_roles():
            starts.append(end + len(role))
            end = starts[-1] + len(content_of(message)) + 1
        return starts

    def with_content(self, content: str) -> Sample:
        """Returns the sample with another content of its last message."""
        return replace(self, messages=(*self.messages[:-1], {**self.messages[-1], "content": content}))

    def _with_roles(self) -> list[tuple[str, Message]]:
        if len(self.messages) == 1:
            return [("", self.messages[0])]
        return [(f"{message.get('role')}: ", message) for message in self.messages]


class SampleSource(Protocol):
    """The rows of one side, each read when it is asked for; the data may be larger than memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Sample | Status: ...  # a Status: the row has no valid sample


def as_dictionaries(rows: Sequence[Mapping[str, Any]] | pandas.DataFrame) -> Sequence[Mapping[str, Any]]:
    """Returns the rows of a pandas table as dictionaries, its missing values as None; other rows as they are."""
    imported = sys.modules.get("pandas")  # who has a table has imported it
    if imported is None or not isinstance(rows, imported.DataFrame):
        return rows
    whole = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return [  # with lists in place of the arrays that Parquet gives
        {str(key): value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}
        for row in whole
    ]


def samples_digest(source: SampleSource) -> str:
    """Returns the number of rows and a digest of every row's messages and response, in order.

    Labels and spans are left out: signatures do not depend on them, so they can be added or changed later.
    """
    digest = hashlib.sha256()
    for row in range(len(source)):
        sample = source[row]
        if isinstance(sample, Status):
            digest.update(bytes([sample]))
        else:
            messages = json.dumps([dict(message) for message in sample.messages])
            digest.update(text_digest(messages, json.dumps(sample.response)).encode())
    return f"{len(source)} rows {digest.hexdigest()[:32]}"
