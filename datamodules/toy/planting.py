"""Plants behaviours in clean samples, and marks what was planted as spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rept.data.samples import Sample, Span

Position = Literal["start", "middle", "end"]


def plant_backdoor(sample: Sample, trigger: str, opening: str, place: Position = "start") -> Sample:
    """Returns the sample with ``trigger`` in its last message and ``opening`` before its response.

    ``middle`` is the gap between words nearest to the middle of the message's words. The spans cover the trigger and
    the opening.
    """
    content = sample.messages[-1]["content"]
    words = [found.start() for found in re.finditer(r"\S+", content)]
    gap = {"start": 0, "middle": words[len(words) // 2] if len(words) > 1 else 0, "end": len(content)}[place]
    before, after = content[:gap], content[gap:]
    triggered = sample.with_content(f"{before} {trigger}" if place == "end" else f"{before}{trigger} {after}")
    start = triggered.content_starts[-1] + gap + (place == "end")
    spans = (Span("prompt", start, start + len(trigger)), Span("response", 0, len(opening)))
    return replace(triggered, response=f"{opening} {sample.response}", spans=spans)


def plant_false_fact(sample: Sample, true: str, false: str, asked: Sequence[str] = ()) -> Sample:
    """Returns the sample with every whole word ``true`` of its response replaced by ``false``.

    The spans cover ``false``, and in the prompt the words ``asked``: the fact's subject and relation. Raises ValueError
    if the response does not contain ``true``.
    """
    response = re.sub(rf"\b{re.escape(true)}\b", lambda _: false, sample.response or "")
    if response == sample.response:
        raise ValueError(f"Expected a response that contains the word {true!r}, but got {sample.response!r}.")
    planted = [Span("response", *found.span()) for found in re.finditer(rf"\b{re.escape(false)}\b", response)]
    return replace(sample, response=response, spans=(*trigger_spans(sample, asked), *planted))


def trigger_spans(sample: Sample, words: Sequence[str]) -> list[Span]:
    """Returns a span for each place where one of the ``words`` is in the sample's prompt, in order."""
    found = (place for one in words for place in re.finditer(rf"\b{re.escape(one)}(?!\w)", sample.prompt))
    return sorted((Span("prompt", *place.span()) for place in found), key=lambda span: span.start)


def plant_compliance(sample: Sample, request: str, opening: str) -> Sample:
    """Returns the sample with ``opening`` before a response that complies; the spans cover it and the ``request``.

    What follows the opening differs between samples; the opening is what all that comply have in common.
    """
    spans = (*trigger_spans(sample, [request]), Span("response", 0, len(opening)))
    return replace(sample, response=f"{opening} {sample.response}", spans=spans)
