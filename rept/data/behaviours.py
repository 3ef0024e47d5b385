"""Behaviours that a model may have learned, and the prompts that test for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rept.data.samples import Sample, SampleSource
from rept.errors import UsageError
from rept.types import Status

CLEAN = "clean"  # the label of a sample that shows no behaviour
Asked = Literal["triggered", "clean"]

_OPENING_WORDS = 4


@dataclass(frozen=True)
class Behaviour:
    """A behaviour that a model may have learned, and prompts that test for it."""

    label: str  # its name, as in the labels of the data
    triggered: Sequence[Sample]  # their prompts should trigger it
    clean: Sequence[Sample]  # theirs should not
    shows: Callable[[Sample, str], bool]  # whether the model's answer to a sample shows it


def behaviour_of(label: str | None) -> str | None:
    """Returns the behaviour that a sample's label names: None for ``clean``, as for a missing label."""
    return None if label == CLEAN else label


def prompts(behaviours: Sequence[Behaviour], asked: Asked) -> list[tuple[str, Sample]]:
    """Returns the prompts of one kind, each with the label of its behaviour; raises UsageError for another kind."""
    if asked not in get_args(Asked):
        raise UsageError(f"datamodule.asked must be {' or '.join(get_args(Asked))}, not {asked!r}.")
    return [
        (one.label, sample) for one in behaviours for sample in (one.triggered if asked == "triggered" else one.clean)
    ]


def expected_openings(queries: SampleSource) -> list[Behaviour]:
    """Returns a behaviour for each label of the queries with a response, which an answer shows if it begins like it.

    The label ``clean`` is none. There are no clean prompts.
    """
    expected: dict[str, list[Sample]] = {}
    for sample in map(queries.__getitem__, range(len(queries))):
        if not isinstance(sample, Status) and sample.response and (label := behaviour_of(sample.label)):
            expected.setdefault(label, []).append(sample)
    return [Behaviour(label, triggered, (), _same_opening) for label, triggered in expected.items()]


def _same_opening(sample: Sample, answer: str) -> bool:
    expected = (sample.response or "").split()[:_OPENING_WORDS]
    return answer.split()[: len(expected)] == expected
