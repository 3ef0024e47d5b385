"""A behaviour that a model may have learned, and the prompts that test for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rept.errors import UsageError
from rept.types import Status

CLEAN = "clean"  # the label of a sample that shows no behaviour
Asked = Literal["triggered", "clean"]

_OPENING_WORDS = 4


@dataclass(frozen=True)
class Behaviour:
    """A behaviour that a model may have learned, and prompts to find out whether it has.

    Attributes:
        label: its name, as in the data's labels.
        triggered: samples whose prompts call for it.
        clean: samples whose prompts do not.
        shows: told a sample and the model's answer, says whether the answer shows the behaviour.
    """

    label: str
    triggered: Sequence[Any]
    clean: Sequence[Any]
    shows: Callable[[Any, str], bool]


def behaviour_of(label: str | None) -> str | None:
    """Returns the behaviour that a sample's label names: None for ``clean``, as for a missing label.

    Example:
        >>> behaviour_of("backdoor"), behaviour_of("clean"), behaviour_of(None)
        ('backdoor', None, None)
    """
    return None if label == CLEAN else label


def prompts(behaviours: Sequence[Behaviour], asked: Asked) -> list[tuple[str, Any]]:
    """The label of each behaviour with each of its prompts of that kind.

    Raises:
        UsageError: there is no such kind.
    """
    if asked not in get_args(Asked):
        raise UsageError(f"datamodule.asked must be {' or '.join(get_args(Asked))}, not {asked!r}.")
    return [(behaviour.label, sample) for behaviour in behaviours for sample in getattr(behaviour, asked)]


def expected_openings(queries: Sequence[Any]) -> list[Behaviour]:
    """Behaviours of queries that bring their expected response: an answer shows one when it begins with the same words.

    One behaviour for each label among the queries, without clean prompts.
    """
    samples = [sample for sample in map(queries.__getitem__, range(len(queries))) if not isinstance(sample, Status)]
    expected = [sample for sample in samples if sample.response and sample.label]
    labels = dict.fromkeys(sample.label for sample in expected)
    return [Behaviour(label, [s for s in expected if s.label == label], (), _same_opening) for label in labels]


def _same_opening(sample: Any, answer: str) -> bool:
    expected = sample.response.split()[:_OPENING_WORDS]
    return answer.split()[: len(expected)] == expected
