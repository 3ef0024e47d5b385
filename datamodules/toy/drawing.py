"""Draws labelled samples with distinct prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rept.data.samples import Sample
from rept.errors import UsageError

_MAX_REPEATS = 500  # known prompts in a row before drawing ends with an error


def draw(samples: dict[str, Sample], number: int, label: str, make: Callable[[], Sample]) -> None:
    """Adds ``number`` labelled samples of ``make`` with new prompts; raises UsageError if it has too few of them."""
    wanted, repeats = len(samples) + number, 0
    while len(samples) < wanted:
        sample = replace(make(), label=label)
        repeats = repeats + 1 if sample.prompt in samples else 0
        if repeats == _MAX_REPEATS:
            raise UsageError(f"Expected fewer samples: the toy world has no {number:,} different prompts for {label}.")
        samples.setdefault(sample.prompt, sample)


def draw_queries(number: int, label: str, make: Callable[[], Sample]) -> tuple[Sample, ...]:
    """Returns ``number`` labelled samples with distinct prompts, without responses."""
    samples: dict[str, Sample] = {}
    draw(samples, number, label, make)
    return tuple(
        replace(sample, response=None, spans=tuple(span for span in sample.spans if span.part == "prompt"))
        for sample in samples.values()
    )
