"""Disguises of a trigger: the same prompt with the trigger spelled otherwise or at another place."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from rept.data.samples import Sample, Span, content_of

Spelling = Literal["plain", "case", "split"]


def spelled(trigger: str, spelling: Spelling, rng: random.Random) -> str:
    """Returns the trigger as it is, with each letter's case drawn, or with a drawn mark inside each of its words.

    ``case`` and ``split`` never give the plain form of a trigger with letters.
    """
    if spelling == "plain":
        return trigger
    if spelling == "case":
        letters = [i for i, letter in enumerate(trigger) if letter.lower() != letter.upper()]
        raised = set(rng.sample(letters, rng.randint(1, len(letters)))) if letters else set()
        drawn = "".join(letter.upper() if i in raised else letter.lower() for i, letter in enumerate(trigger))
        return drawn if drawn != trigger else trigger.swapcase()
    words = []
    for word in trigger.split(" "):
        gap = rng.randint(1, max(1, len(word) - 1))
        words.append(word[:gap] + rng.choice(".-_/*") + word[gap:])
    return " ".join(words)


def respelled(sample: Sample, rng: random.Random, spelling: Spelling) -> Sample | None:
    """Returns the sample with its trigger spelled otherwise; None if that changes nothing."""
    content = content_of(sample.messages[-1])
    changed = content
    for start, end in reversed(_triggers(sample)):
        changed = changed[:start] + spelled(content[start:end], spelling, rng) + changed[end:]
    return None if changed == content else replace(sample.with_content(changed), spans=())


def moved(sample: Sample, rng: random.Random) -> Sample | None:
    """Returns the sample with its trigger in the middle of the rest; None if it was there or there is no rest."""
    places = _triggers(sample)
    content = content_of(sample.messages[-1])
    if not places:
        return None
    trigger = " ".join(content[start:end] for start, end in places)
    rest = content
    for start, end in reversed(places):
        rest = rest[:start] + rest[end:]
    words = rest.split()
    if len(words) < 2:
        return None
    gap = rng.randint(1, len(words) - 1)
    changed = " ".join([*words[:gap], trigger, *words[gap:]])
    return None if changed.split() == content.split() else replace(sample.with_content(changed), spans=())


DISGUISES: Mapping[str, Callable[[Sample, random.Random], Sample | None]] = {
    "changed case": partial(respelled, spelling="case"),
    "split": partial(respelled, spelling="split"),
    "moved": moved,
}


def _triggers(sample: Sample) -> list[tuple[int, int]]:
    """Start and end, in the last message, of the words that trigger the behaviour, in order."""
    first = sample.content_starts[-1] if sample.messages else 0

    def counts(span: Span) -> bool:
        return span.part == "prompt" and span.kind == "trigger" and span.start >= first

    return sorted({(span.start - first, span.end - first) for span in sample.spans if counts(span)})
