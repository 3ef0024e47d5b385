"""From a record to a sample: which column holds what, and what can be wrong with a record.

Holds Columns, find_columns, to_sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.files.records import Record
from rept.data.samples import Sample, Span
from rept.data.validation import is_text, prompt_problem
from rept.errors import UsageError
from rept.types import Side, Status

# Names that are looked for, in this order, where the user names no column.
_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompts", "prompt", "instruction"),
    "response": ("response", "output", "expected_response"),
    "label": ("label",),
    "spans": ("spans",),
}


@dataclass(frozen=True)
class Columns:
    """Where the parts of a sample are; None: nowhere."""

    messages: str | None
    prompt: str | None
    input: str | None  # what an Alpaca instruction is about
    response: str | None
    label: str | None
    spans: str | None


def find_columns(found: Sequence[str], named: Mapping[str, str | None], side: Side, where: str) -> Columns:
    """Chooses the columns of one side.

    Args:
        found: the columns that the data have.
        named: those that the user names, by part.
        where: the data, as the user gave them.

    Raises:
        UsageError: a column that is named is missing, or there is none for the prompt or for the training responses.
    """

    def column(part: str) -> str | None:
        name = named[part]
        if name is None or (side == "query" and name not in found):
            return next((name for name in _NAMES[part] if name in found), None)
        if name not in found:
            raise UsageError(f"Expected {where} to have the column {name!r} of datamodule.{part}_column; {columns}.")
        return name

    def missing(part: str, names: Sequence[str]) -> UsageError:
        wanted = f"{', '.join(names[:-1])} or {names[-1]}"
        setting = f"datamodule.{part}_column"
        return UsageError(f"Expected {where} to have a column {wanted}; {columns}; name yours by {setting}.")

    columns = f"columns found: {', '.join(found) or 'none'}"
    prompt = column("prompt")
    messages = column("messages") if named["prompt"] not in found else None
    response = column("response")
    if messages is None and prompt is None:
        raise missing("prompt", (*_NAMES["prompt"], *_NAMES["messages"]))
    if messages is None and response is None and side == "train":
        raise missing("response", _NAMES["response"])
    alpaca = prompt == "instruction" and named["prompt"] is None and "input" in found
    return Columns(
        messages=messages,
        prompt=None if messages else prompt,
        input="input" if alpaca and not messages else None,
        response=response,
        label=column("label"),
        spans=column("spans"),
    )


def to_sample(record: Record, columns: Columns) -> Sample | Status:
    """A record's sample, or what is wrong with it. A response that is missing or null is None."""
    turns = _turns(record, columns) if columns.messages else _instruction(record, columns)
    if isinstance(turns, Status):
        return turns
    messages, response = turns
    problem = prompt_problem(messages)
    if problem is not None:
        return problem
    if response is not None and not is_text(response):
        return Status.NOT_A_STRING
    sample = Sample(messages, response)
    label = _label(record.get(columns.label)) if columns.label else None
    spans = _spans(record.get(columns.spans), sample) if columns.spans else ()
    if isinstance(label, Status) or isinstance(spans, Status):
        return Status.MALFORMED
    return Sample(messages, response, label, spans)


Turns = tuple[tuple[Mapping[str, Any], ...], Any]  # the messages of the prompt, and the response


def _instruction(record: Record, columns: Columns) -> Turns | Status:
    prompt = record.get(columns.prompt)
    about = record.get(columns.input) if columns.input else None
    if prompt is None:
        return Status.EMPTY_PROMPT
    if not isinstance(prompt, str) or not isinstance(about, str | None):
        return Status.NOT_A_STRING
    if about and about.strip():
        prompt = f"{prompt}\n\n{about}"
    return ({"role": "user", "content": prompt},), record.get(columns.response) if columns.response else None


def _turns(record: Record, columns: Columns) -> Turns | Status:
    """The last assistant turn answers what stands before it; messages that end otherwise need a response column."""
    messages = _parsed(record.get(columns.messages))
    if messages is None:
        return Status.EMPTY_PROMPT
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Status.MALFORMED
    # Arrow gives every message every key, and null for those that it does not have.
    kept = tuple({key: value for key, value in message.items() if value is not None} for message in messages)
    if kept and kept[-1].get("role") == "assistant":
        return kept[:-1], kept[-1].get("content", "")
    return kept, record.get(columns.response) if columns.response else None


def _label(value: Any) -> str | None | Status:
    if value is None or value == "" or value != value:  # NaN is how some writers say missing
        return None
    if isinstance(value, float) and value.is_integer():  # and how they turn whole numbers beside it into 1.0
        return str(int(value))
    return str(value) if isinstance(value, bool | int | float) or is_text(value) else Status.MALFORMED


def _spans(value: Any, sample: Sample) -> tuple[Span, ...] | Status:
    value = _parsed(value) or []
    lengths = {"prompt": len(sample.prompt), "response": len(sample.response or "")}
    spans = []
    for span in value if isinstance(value, list) else [None]:
        if not isinstance(span, dict) or span.get("part") not in list(lengths):  # by ==, for it may be unhashable
            return Status.MALFORMED
        start, end = span.get("start"), span.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= lengths[span["part"]]:
            return Status.MALFORMED
        spans.append(Span(span["part"], start, end))
    return tuple(spans)


def _parsed(value: Any) -> Any:
    """What a string holds as JSON, for columns of files that hold only strings; itself where it is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value
