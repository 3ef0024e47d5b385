"""Checks of a sample that need neither a template nor a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from rept.data.samples import Message, content_of
from rept.types import Status


def is_text(value: object) -> TypeGuard[str]:
    """Whether a tokenizer accepts a value: a string without lone surrogates, which JSON permits."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def prompt_problem(messages: Sequence[Message]) -> Status | None:
    """Returns why messages are no valid prompt: a turn without role or text, or no text outside the system's turn."""
    for message in messages:
        if not isinstance(message, Mapping) or not message.get("role") or not is_text(message["role"]):
            return Status.MALFORMED
        content = message.get("content")
        if not is_text(content) and not (content is None and message.get("tool_calls")):
            return Status.NOT_A_STRING
    contents = (content_of(message) for message in messages if message["role"] != "system")
    return None if any(content.strip() for content in contents) else Status.EMPTY_PROMPT


def response_problem(response: object) -> Status | None:
    """Returns why a response is invalid: missing, no string, or only white space."""
    if response is None:
        return Status.EMPTY_RESPONSE
    if not is_text(response):
        return Status.NOT_A_STRING
    return None if response.strip() else Status.EMPTY_RESPONSE
