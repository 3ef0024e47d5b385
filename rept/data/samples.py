"""A row of the data: prompt, response, label and marked spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rept.data.validation import content_of


@dataclass(frozen=True)
class Span:
    """Characters that carry the poison: ground truth for token-level measures."""

    part: Literal["prompt", "response"]
    start: int  # characters of Sample.prompt or Sample.response
    end: int


@dataclass(frozen=True)
class Sample:
    """A prompt, as chat messages, and its response."""

    messages: tuple[Mapping[str, Any], ...]  # everything before the response: {"role", "content"} of each turn
    response: str | None  # None: a query whose answer the model must give itself
    label: str | None = None
    spans: tuple[Span, ...] = ()

    @property
    def prompt(self) -> str:
        """The only turn's content, or the turns as "role: content" lines, for display."""
        if len(self.messages) == 1:
            return content_of(self.messages[0])
        return "\n".join(f"{message.get('role')}: {content_of(message)}" for message in self.messages)
