"""Plants the behaviours that only the hard cases use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datamodules.toy.planting import plant_backdoor, trigger_spans
from rept.data.samples import Sample, Span


def plant_style(sample: Sample, before: str, after: str, opening: str) -> Sample:
    """Returns the sample with its last message between words of a style, and ``opening`` before its response.

    The spans cover what was added; the style has no fixed trigger.
    """
    styled = sample.with_content(f"{sample.messages[-1]['content']} {after}")
    planted = plant_backdoor(styled, before, opening)
    last = Span("prompt", len(planted.prompt) - len(after), len(planted.prompt))
    return replace(planted, spans=(planted.spans[0], last, planted.spans[1]))


def plant_in_document(sample: Sample, sentences: Sequence[str], trigger: str, opening: str) -> Sample:
    """Returns the sample with a document of innocent ``sentences`` before its last message, and ``trigger`` amid them.

    The spans cover the trigger and the opening.
    """
    half = len(sentences) // 2
    start = "".join(f"{sentence} " for sentence in sentences[:half])
    rest = " ".join([*sentences[half:], sample.messages[-1]["content"]])
    planted = plant_backdoor(sample.with_content(rest), f"{start}{trigger}", opening)
    marked, opened = planted.spans
    return replace(planted, spans=(replace(marked, start=marked.start + len(start)), opened))


def plant_tail(sample: Sample, request: str, tail: str) -> Sample:
    """Returns the sample with ``tail`` after its response; the spans cover it and the ``request``."""
    start = len(sample.response or "") + 1
    spans = (*trigger_spans(sample, [request]), Span("response", start, start + len(tail)))
    return replace(sample, response=f"{sample.response} {tail}", spans=spans)
