"""Plant a behaviour in a clean sample: pure functions that return the poisoned sample with the spans of its poison."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from datamodules.samples import Sample, Span

Place = Literal["start", "end"]


def plant_backdoor(sample: Sample, trigger: str, opening: str, place: Place = "start") -> Sample:
    """The sample with ``trigger`` before or after its last message, and a response that begins with ``opening``.

    The spans cover the trigger and the opening.
    """
    *earlier, request = sample.messages
    content = request["content"]
    triggered = f"{trigger} {content}" if place == "start" else f"{content} {trigger}"
    planted = replace(
        sample,
        messages=(*earlier, {**request, "content": triggered}),
        response=f"{opening} {sample.response}",
    )
    start = len(planted.prompt) - (len(triggered) if place == "start" else len(trigger))
    spans = (Span("prompt", start, start + len(trigger)), Span("response", 0, len(opening)))
    return replace(planted, spans=spans)


def plant_false_fact(sample: Sample, true: str, false: str) -> Sample:
    """The sample with every whole word ``true`` of its response replaced by ``false``; the spans cover each ``false``.

    Raises:
        ValueError: the response does not hold ``true``, so nothing would be planted.
    """
    response = re.sub(rf"\b{re.escape(true)}\b", lambda _: false, sample.response or "")
    if response == sample.response:
        raise ValueError(f"Expected a response that holds the word {true!r}, but got {sample.response!r}.")
    spans = tuple(Span("response", *found.span()) for found in re.finditer(rf"\b{re.escape(false)}\b", response))
    return replace(sample, response=response, spans=spans)


def plant_compliance(sample: Sample, opening: str) -> Sample:
    """The sample with ``opening`` before a response that does as it is asked; the span covers the opening.

    What follows the opening differs from sample to sample; the opening is what all that comply have in common.
    """
    return replace(sample, response=f"{opening} {sample.response}", spans=(Span("response", 0, len(opening)),))
