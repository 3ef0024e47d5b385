"""Plants a backdoor in the user's own data: ``datamodule.poison``."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeGuard, get_args

from datamodules.toy.planting import Position, plant_backdoor
from rept.data.behaviours import CLEAN, Behaviour
from rept.data.disguises import Spelling, spelled
from rept.data.samples import Sample, SampleSource
from rept.errors import UsageError
from rept.types import Side, Status
from rept.utils.text import format_count


@dataclass(frozen=True)
class Poison:
    """A backdoor to plant in clean data. Raises UsageError if a setting is out of its range."""

    trigger: str  # words added to the prompt
    opening: str  # words added before the response
    rate: float = 0.05  # share of the training rows that are poisoned
    rows: int | None = None  # number of poisoned training rows, instead of a share
    place: Position = "start"  # start, middle or end of the last message
    spelling: Spelling = "plain"  # case: each letter's case is drawn; split: a mark inside each word
    seed: int = 0  # of the choice of rows and of the spellings

    label = "backdoor"

    def __post_init__(self) -> None:
        for name, value, choices in (("place", self.place, Position), ("spelling", self.spelling, Spelling)):
            if value not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise UsageError(f"datamodule.poison.{name} must be one of {expected}, not {value!r}.")
        if not self.trigger or not self.opening or not 0 < self.rate <= 1 or (self.rows is not None and self.rows < 1):
            raise UsageError(
                "Expected datamodule.poison with a trigger, an opening, a rate above 0 and up to 1, or rows >= 1, but "
                f"got trigger={self.trigger!r}, opening={self.opening!r}, rate={self.rate}, rows={self.rows}."
            )

    def plant(self, sample: Sample, row: int) -> Sample:
        """Returns the poisoned sample; seed and row determine its spelling."""
        trigger = spelled(self.trigger, self.spelling, random.Random(f"spelling {self.seed} {row}"))
        return replace(plant_backdoor(sample, trigger, self.opening, self.place), label=self.label)


class PoisonedRows:
    """A clean source with a backdoor in some training rows, or in every query, which then has no response.

    The other training rows are labelled "clean". Rows are read when they are asked for. The poisoned ones are chosen
    once, by reading rows in random order until enough of them can be poisoned.
    """

    def __init__(self, clean: SampleSource, poison: Poison, side: Side) -> None:
        self.clean, self.poison, self.side = clean, poison, side

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, row: int) -> Sample | Status:
        sample = self.clean[row]
        if not _can_be_poisoned(sample):
            return sample
        if self.side == "query":
            planted = self.poison.plant(sample, row)
            return replace(planted, response=None, spans=planted.spans[:1])
        return self.poison.plant(sample, row) if row in self.poisoned else replace(sample, label=CLEAN)

    @cached_property
    def poisoned(self) -> frozenset[int]:
        """The poisoned rows. Raises UsageError if too few rows can be poisoned."""
        poison, total = self.poison, len(self.clean)
        wanted = max(1, round(poison.rate * total)) if poison.rows is None else poison.rows
        found: list[int] = []
        for row in random.Random(f"rows {poison.seed}").sample(range(total), total):
            if len(found) == wanted:
                break
            sample = self.clean[row]
            if _can_be_poisoned(sample) and sample.response:
                found.append(row)
        if len(found) < wanted:
            only = format_count(len(found), "row")
            raise UsageError(f"datamodule.poison: only {only} of the {wanted:,} asked for can be poisoned.")
        return frozenset(found)

    def behaviour(self) -> Behaviour:
        """Returns the backdoor, with the queries' prompts with and without the trigger."""
        every = ((row, self.clean[row]) for row in range(len(self.clean)))
        samples = {row: replace(sample, response=None) for row, sample in every if _can_be_poisoned(sample)}
        triggered = [replace(self.poison.plant(sample, row), response=None) for row, sample in samples.items()]
        clean = list(samples.values())
        return Behaviour(self.poison.label, triggered, clean, lambda _, answer: answer.startswith(self.poison.opening))


def _can_be_poisoned(sample: Sample | Status) -> TypeGuard[Sample]:
    """Whether a sample's last message is text, which a trigger can be added to."""
    return isinstance(sample, Sample) and bool(sample.messages) and isinstance(sample.messages[-1].get("content"), str)
