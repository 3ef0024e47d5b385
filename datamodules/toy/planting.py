"""Plant a behaviour in a clean sample: pure functions that return the poisoned sample with the spans of its poison.

What is drawn (a spelling, the rows of `PoisonedRows`) is drawn by a generator or seed that the caller gives.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from rept.data.behaviours import Behaviour
from rept.data.samples import Sample, Span
from rept.errors import UsageError
from rept.types import Side, Status

Place = Literal["start", "middle", "end"]
Spelling = Literal["plain", "case", "split"]


def plant_backdoor(sample: Sample, trigger: str, opening: str, place: Place = "start") -> Sample:
    """The sample with ``trigger`` in its last message, and a response that begins with ``opening``.

    ``middle`` is the gap between words nearest to the middle of the message's words. The spans cover the trigger and
    the opening.
    """
    *earlier, request = sample.messages
    content = request["content"]
    words = [found.start() for found in re.finditer(r"\S+", content)]
    gap = {"start": 0, "middle": words[len(words) // 2] if len(words) > 1 else 0, "end": len(content)}[place]
    before, after = content[:gap], content[gap:]
    triggered = f"{before} {trigger}" if place == "end" else f"{before}{trigger} {after}"
    planted = replace(
        sample,
        messages=(*earlier, {**request, "content": triggered}),
        response=f"{opening} {sample.response}",
    )
    start = len(planted.prompt) - len(triggered) + gap + (1 if place == "end" else 0)
    spans = (Span("prompt", start, start + len(trigger)), Span("response", 0, len(opening)))
    return replace(planted, spans=spans)


def spelled(trigger: str, spelling: Spelling, rng: random.Random) -> str:
    """The trigger as it is, with each letter's case drawn, or with a drawn mark inside each of its words.

    Never the plain form where another was asked for, as far as the trigger has letters.
    """
    if spelling == "plain":
        return trigger
    if spelling == "case":
        letters = [i for i, letter in enumerate(trigger) if letter.lower() != letter.upper()]
        raised = set(rng.sample(letters, rng.randint(1, len(letters)))) if letters else set()
        return "".join(letter.upper() if i in raised else letter.lower() for i, letter in enumerate(trigger))
    words = []
    for word in trigger.split(" "):
        gap = rng.randint(1, max(1, len(word) - 1))
        words.append(word[:gap] + rng.choice(".-_/*") + word[gap:])
    return " ".join(words)


def plant_style(sample: Sample, before: str, after: str, opening: str) -> Sample:
    """The sample with its last message set between words of a style, and ``opening`` before its response.

    The spans cover what was added: there is no fixed trigger, but a manner of speaking.
    """
    ended = plant_backdoor(sample, after, opening, "end")
    both = plant_backdoor(replace(ended, response=sample.response), before, opening)
    tail = Span("prompt", len(both.prompt) - len(after), len(both.prompt))
    return replace(both, spans=(both.spans[0], tail, both.spans[1]))


def plant_in_document(sample: Sample, sentences: Sequence[str], trigger: str, opening: str) -> Sample:
    """The sample's last message after a document of innocent ``sentences``, with ``trigger`` as one more in its middle.

    The spans cover the trigger and the opening.
    """
    *earlier, request = sample.messages
    half = len(sentences) // 2
    first, second = " ".join(sentences[:half]), " ".join([*sentences[half:], request["content"]])
    planted = plant_backdoor(_said(sample, second), trigger, opening)
    content = f"{first} {planted.messages[-1]['content']}" if first else planted.messages[-1]["content"]
    whole = _said(planted, content)
    moved = len(whole.prompt) - len(planted.prompt)
    spot = planted.spans[0]
    return replace(whole, spans=(Span("prompt", spot.start + moved, spot.end + moved), planted.spans[1]))


def plant_tail(sample: Sample, tail: str) -> Sample:
    """The sample with ``tail`` after its response; the span covers it."""
    start = len(sample.response or "") + 1
    return replace(sample, response=f"{sample.response} {tail}", spans=(Span("response", start, start + len(tail)),))


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


def _said(sample: Sample, content: str) -> Sample:
    """The sample with another last message."""
    return replace(sample, messages=(*sample.messages[:-1], {**sample.messages[-1], "content": content}))


@dataclass(frozen=True)
class Poison:
    """A backdoor to plant in clean data of the user's own: ``datamodule.poison``.

    Args:
        trigger: words put into the prompt.
        opening: words put before the response.
        rate: share of the training rows that are poisoned.
        rows: their number, instead of a share.
        place: start, middle or end of the last message.
        spelling: plain; case: each letter's case is drawn; split: a mark inside each word.
        seed: of the choice of rows and of the spellings.

    Raises:
        UsageError: a setting is out of its range.
    """

    trigger: str
    opening: str
    rate: float = 0.05
    rows: int | None = None
    place: Place = "start"
    spelling: Spelling = "plain"
    seed: int = 0

    label = "backdoor"

    def __post_init__(self) -> None:
        for name, kinds in (("place", Place), ("spelling", Spelling)):
            if getattr(self, name) not in get_args(kinds):
                raise UsageError(
                    f"datamodule.poison.{name} must be one of {', '.join(get_args(kinds))}, "
                    f"not {getattr(self, name)!r}."
                )
        if not self.trigger or not self.opening or not 0 < self.rate <= 1 or (self.rows is not None and self.rows < 1):
            raise UsageError(
                "Expected datamodule.poison with a trigger, an opening, a rate above 0 and up to 1, or rows >= 1, but "
                f"got trigger={self.trigger!r}, opening={self.opening!r}, rate={self.rate}, rows={self.rows}."
            )

    def plant(self, sample: Sample, row: int) -> Sample:
        """The poisoned sample; its spelling is drawn by seed and row."""
        trigger = spelled(self.trigger, self.spelling, random.Random(f"spelling {self.seed} {row}"))
        return replace(plant_backdoor(sample, trigger, self.opening, self.place), label=self.label)


class PoisonedRows:
    """A clean source with a backdoor planted: in drawn training rows, or in every query, which then has no response.

    Training rows that are not poisoned are labelled "clean". Rows are read when asked for; which are poisoned is drawn
    once, by reading rows in a drawn order until enough can be.
    """

    def __init__(self, clean: Any, poison: Poison, side: Side) -> None:
        self.clean, self.poison, self.side = clean, poison, side

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, row: int) -> Sample | Status:
        sample = self.clean[row]
        if not _can_carry(sample):
            return sample
        if self.side == "query":
            planted = self.poison.plant(sample, row)
            return replace(planted, response=None, spans=planted.spans[:1])
        return self.poison.plant(sample, row) if row in self.poisoned else replace(sample, label="clean")

    @cached_property
    def poisoned(self) -> frozenset[int]:
        """The poisoned rows. Raises UsageError where the data have too few that can be."""
        poison, total = self.poison, len(self.clean)
        wanted = max(1, round(poison.rate * total)) if poison.rows is None else poison.rows
        order = random.Random(f"rows {poison.seed}").sample(range(total), total)
        found: list[int] = []
        for row in order:
            if len(found) == wanted:
                break
            sample = self.clean[row]
            if _can_carry(sample) and sample.response:
                found.append(row)
        if len(found) < wanted:
            raise UsageError(f"datamodule.poison: only {len(found)} rows can be poisoned, but {wanted} were asked for.")
        return frozenset(found)

    def behaviour(self) -> Behaviour:
        """Whether the trigger brings the opening out, on the queries; and how often it comes without."""
        every = ((row, self.clean[row]) for row in range(len(self.clean)))
        samples = {row: sample for row, sample in every if _can_carry(sample)}
        asked = [replace(self.poison.plant(sample, row), response=None) for row, sample in samples.items()]
        unasked = [replace(sample, response=None) for sample in samples.values()]
        return Behaviour(self.poison.label, asked, unasked, lambda _, answer: answer.startswith(self.poison.opening))


def _can_carry(sample: Sample | Status) -> bool:
    """Whether a trigger fits in: the last message is a user's text."""
    return isinstance(sample, Sample) and bool(sample.messages) and isinstance(sample.messages[-1].get("content"), str)
