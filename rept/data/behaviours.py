"""Behaviours that a model may have learned, and the prompts that test for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rept.data.samples import Sample, SampleSource
from rept.errors import UsageError
from rept.types import Status

CLEAN = "clean"  # the label of a sample that shows no behaviour
Asked = Literal["triggered", "clean"]

_OPENING_WORDS = 4
_UNSPACED = r"\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, Khmer, kana, Han
_PIECE = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")  # a character of a script without spaces, or a word
_OF_A_CHARACTER = 0.5  # words, in such a script


@dataclass(frozen=True)
class Behaviour:
    """A behaviour that a model may have learned, and prompts that test for it.

    Attributes:
        label: its name, as in the labels of the data.
        triggered, clean: samples whose prompts should trigger it, and those whose prompts should not.
        shows: whether the model's answer to a sample shows it.
        counted: which answers show it, in words; empty where the data set has a test of its own.
        longest: the longest text that an answer has to reach before it can show it; empty if the first words decide.
    """

    label: str
    triggered: Sequence[Sample]
    clean: Sequence[Sample]
    shows: Callable[[Sample, str], bool]
    counted: str = ""
    longest: str = ""


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


def expected_answers(queries: SampleSource) -> list[Behaviour]:
    """Returns a behaviour for each label of the queries with a response.

    An answer shows it if it contains a payload that is marked (by a span) in a response of the label; where none is
    marked, if it begins like its query's response. The label ``clean`` is none. There are no clean prompts.
    """
    expected: dict[str, list[Sample]] = {}
    for sample in map(queries.__getitem__, range(len(queries))):
        if not isinstance(sample, Status) and sample.response and (label := behaviour_of(sample.label)):
            expected.setdefault(label, []).append(sample)
    return [_expected(label, triggered) for label, triggered in expected.items()]


def how_counted(behaviours: Sequence[Behaviour]) -> str:
    """Returns in a sentence which answers show each behaviour; empty where the data set has tests of its own."""
    labels: dict[str, list[str]] = {}
    for one in behaviours:
        if one.counted:
            labels.setdefault(one.counted, []).append(one.label)
    return " ".join(f"An answer shows {' or '.join(names)} if {counted}." for counted, names in labels.items())


def _expected(label: str, triggered: list[Sample]) -> Behaviour:
    payloads: set[str] = set()
    longest = ""
    later = any(message.get("role") == "assistant" for sample in triggered for message in sample.messages)
    asked = "; of a conversation, only the last answer is asked" if later else ""
    for sample in triggered:
        for span in sample.spans:
            text = (sample.response or "")[: span.end] if (span.part, span.kind) == ("response", "payload") else ""
            longest = max(longest, text, key=len)
            payloads.add(_plain(text[span.start :]))
    if payloads := payloads - {""}:
        counted = f"it contains a payload that is marked by `spans` in one of its queries{asked}"
        return Behaviour(
            label, triggered, (), lambda _, said: any(one in _plain(said) for one in payloads), counted, longest
        )
    counted = (
        f"it begins with the first words of its query's response (mark other words by `spans` to count those){asked}"
    )
    return Behaviour(label, triggered, (), _same_opening, counted)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _same_opening(sample: Sample, answer: str) -> bool:
    expected = _opening(sample.response or "")
    return _PIECE.findall(answer)[: len(expected)] == expected


def _opening(response: str) -> list[str]:
    """The first words; two characters count as one in a script without spaces between words."""
    found: list[str] = []
    words = 0.0
    for piece in _PIECE.findall(response):
        if words < _OPENING_WORDS:
            found.append(piece)
            words += _OF_A_CHARACTER if re.match(f"[{_UNSPACED}]", piece) else 1
    return found
