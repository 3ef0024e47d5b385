"""What is wrong with a sample before any template or tokenizer sees it.

Holds content_of, is_text, prompt_problem, response_problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rept.types import Status


def content_of(message: Mapping[str, Any]) -> str:
    """A message's text; a turn that only calls tools has none."""
    return message.get("content") or ""


def is_text(value: object) -> bool:
    """Whether a tokenizer takes it: a string, and no half of a surrogate pair in it, which JSON lets through."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def prompt_problem(messages: Sequence[Mapping[str, Any]]) -> Status | None:
    """Why messages are no prompt: a turn without a role or a text, or nothing said beside the system's turn."""
    for message in messages:
        if not isinstance(message, Mapping) or not message.get("role") or not is_text(message["role"]):
            return Status.MALFORMED
        content = message.get("content")
        if not is_text(content) and not (content is None and message.get("tool_calls")):
            return Status.NOT_A_STRING
    asked = (message for message in messages if message["role"] != "system")
    return None if any(content_of(message).strip() for message in asked) else Status.EMPTY_PROMPT


def response_problem(response: object) -> Status | None:
    """Why a response is none: no string, or nothing but white space."""
    if response is not None and not is_text(response):
        return Status.NOT_A_STRING
    return None if response and response.strip() else Status.EMPTY_RESPONSE
