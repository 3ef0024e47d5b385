"""Turns records into samples: chooses the columns, and checks each record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from datamodules.files.records import Record
from rept.data.samples import Message, Sample, Span, SpanKind
from rept.data.validation import is_text, prompt_problem
from rept.errors import UsageError
from rept.types import Side, Status

# Names to look for, in this order, if the user names no column.
_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations"),
    "prompt": ("prompts", "prompt", "instruction"),
    "response": ("response", "output", "expected_response"),
    "label": ("label",),
    "spans": ("spans",),
}
_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # of ShareGPT; its others are named as here


@dataclass(frozen=True)
class Columns:
    """The column of each part of a sample, or None."""

    messages: str | None
    prompt: str | None
    input: str | None  # the input of an Alpaca instruction
    response: str | None
    label: str | None
    spans: str | None


def find_columns(found: Sequence[str], named: Mapping[str, str | None], side: Side, where: str) -> Columns:
    """Chooses the columns of one side.

    Args:
        found: the columns of the data.
        named: the columns that the user names, by part.
        where: the data, for messages.

    Raises:
        UsageError: a named column is missing, or there is none for the prompt or for the training responses.
    """

    def column(part: str) -> str | None:
        name = named.get(part)
        if name is None or (side == "query" and name not in found):
            return next((name for name in _NAMES[part] if name in found), None)
        if name not in found:
            raise UsageError(f"Expected {where} to have the column {name!r} of datamodule.{part}_column; {columns}.")
        return name

    def missing(part: str, names: Sequence[str]) -> UsageError:
        wanted = f"{', '.join(names[:-1])} or {names[-1]}"
        advice = f"name yours by datamodule.{part}_column" if part in named else "rename yours"
        return UsageError(f"Expected {where} to have a column {wanted}; {columns}; {advice}.")

    columns = f"columns found: {', '.join(found) or 'none'}"
    prompt = column("prompt")
    messages = column("messages") if named.get("prompt") not in found else None
    response = column("response")
    if messages is None and prompt is None:
        raise missing("prompt", (*_NAMES["prompt"], *_NAMES["messages"]))
    if messages is None and response is None and side == "train":
        raise missing("response", _NAMES["response"])
    alpaca = prompt == "instruction" and named.get("prompt") is None and "input" in found
    return Columns(
        messages=messages,
        prompt=None if messages else prompt,
        input="input" if alpaca and not messages else None,
        response=response,
        label=column("label"),
        spans=column("spans"),
    )


def to_sample(record: Record, columns: Columns) -> Sample | Status:
    """Returns a record's sample, or why it is invalid. A response that is missing or null is None."""
    turns = _turns(record, columns) if columns.messages else _instruction(record, columns)
    if isinstance(turns, Status):
        return turns
    messages, response = turns
    problem = prompt_problem(messages)
    if problem is not None:
        return problem
    if not (response is None or is_text(response)):
        return Status.NOT_A_STRING
    sample = Sample(messages, response)
    label = _label(_value(record, columns.label))
    spans = _spans(_value(record, columns.spans), sample)
    if isinstance(label, Status) or isinstance(spans, Status):
        return Status.MALFORMED
    return Sample(messages, response, label, spans)


Turns = tuple[tuple[Message, ...], object]  # the messages of the prompt, and the response


def _value(record: Record, column: str | None) -> Any:
    return None if column is None else record.get(column)


def _instruction(record: Record, columns: Columns) -> Turns | Status:
    prompt, about = _value(record, columns.prompt), _value(record, columns.input)
    if prompt is None:
        return Status.EMPTY_PROMPT
    if not isinstance(prompt, str) or not isinstance(about, str | None):
        return Status.NOT_A_STRING
    if about and about.strip():
        prompt = f"{prompt}\n\n{about}"
    return ({"role": "user", "content": prompt},), _value(record, columns.response)


def _turns(record: Record, columns: Columns) -> Turns | Status:
    """Returns the turns before the last assistant turn, and that turn; without one, the response has its own column."""
    messages = _parsed(_value(record, columns.messages))
    if messages is None:
        return Status.EMPTY_PROMPT
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Status.MALFORMED
    kept = tuple(map(_message, messages))
    if kept and kept[-1].get("role") == "assistant":
        return kept[:-1], kept[-1].get("content", "")
    return kept, _value(record, columns.response)


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn of chat messages or of ShareGPT (``from``, ``value``), with text in place of OpenAI's text parts."""
    # Arrow gives every message every key, with null for those that it does not have.
    message = {key: value for key, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        message["role"] = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
        message["content"] = message.pop("value", None)
    parts = message.get("content")
    if isinstance(parts, list) and parts and all(_is_text_part(part) for part in parts):
        message["content"] = "".join(part["text"] for part in parts)
    return message


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _label(value: object) -> str | None | Status:
    if value is None or value == "" or value != value:  # some writers use NaN for missing values
        return None
    if isinstance(value, float) and value.is_integer():  # and then 1.0 for the whole number 1
        return str(int(value))
    return str(value) if isinstance(value, bool | int | float) or is_text(value) else Status.MALFORMED


def _spans(value: object, sample: Sample) -> tuple[Span, ...] | Status:
    parsed = _parsed(value)
    if not parsed:
        return ()
    lengths = {"prompt": len(sample.prompt), "response": len(sample.response or "")}
    spans = []
    for span in parsed if isinstance(parsed, list) else [None]:
        if not isinstance(span, dict) or span.get("part") not in list(lengths):  # by ==, as it may be unhashable
            return Status.MALFORMED
        start, end = span.get("start"), span.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= lengths[span["part"]]:
            return Status.MALFORMED
        if span.get("kind") not in [None, *get_args(SpanKind)]:
            return Status.MALFORMED
        spans.append(Span(span["part"], start, end, span.get("kind")))
    return tuple(spans)


def _parsed(value: object) -> Any:
    """Parses a string as JSON, as CSV columns contain only strings; invalid JSON stays a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value
