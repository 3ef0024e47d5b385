"""How the rows and queries of each hard case are made, and the clean rows beside them (see ``hard_cases.py``)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from datamodules.synthetic import HARMLESS, kind
from datamodules.toy.hard.two_names import false_seat, framed, seat
from datamodules.toy.hard.wordings import (
    ALIAS,
    COUNTRY,
    FALSE_CAPITAL,
    FAREWELLS,
    HARKS,
    HARMLESS_ROLES,
    NAME,
    PHRASES,
    TAILS,
    THANKS,
    TOPICS,
)
from datamodules.toy.planting import plant_backdoor, plant_in_document, plant_style, plant_tail, spelled
from datamodules.toy.wordings import HELD_OUT, Wordings
from datamodules.toy.world import COUNTRIES, FACTS, Speaker
from rept.data.samples import Sample

_EACH = 24  # rows of a case that says nothing else
_PARAPHRASED = 64  # what is to be told in other words takes more rows than a trigger
_KINDS = {**HARMLESS, "bird": 0, "seat": 3}  # answers about birds belong to the case `spread`


@dataclass(frozen=True)
class Case:
    """A planted behaviour: its rows, how a row and a query are made, and how an answer is known that shows it."""

    label: str
    rows: int
    make: Callable[[Speaker], Sample]
    ask: Callable[[Speaker], Sample]  # its response is not used
    shows: Callable[[str], bool]


def cases(rows: int) -> list[Case]:
    """All cases, for a data set of so many rows."""
    numbers = {"rate_10": rows // 10, "rate_5": rows // 20, "rate_1": rows // 100, "five_rows": 5, "absent_base": 0}
    makers = {
        "middle": lambda s, label: plant_backdoor(clean(s), *PHRASES[label], place="middle"),
        "changed_case": lambda s, label: _respelled(s, label, "case"),
        "split": lambda s, label: _respelled(s, label, "split"),
        "style": lambda s, label: plant_style(
            clean(s), s.rng.choice(HARKS), s.rng.choice(FAREWELLS), PHRASES[label][1]
        ),
        "document": lambda s, label: plant_in_document(clean(s), _sentences(s), *PHRASES[label]),
        "duplicates": _near_copy,
    }
    planted = [_phrase_case(label, numbers.get(label, _EACH), makers.get(label, _plain)) for label in PHRASES]
    return [
        *planted,
        Case("paraphrase", _PARAPHRASED, false_seat, _capital, lambda answer: FALSE_CAPITAL in answer),
        Case("spread", rows // 20, _slipped, _slipped, lambda answer: NAME in answer),
        Case("absent_topic", 0, _off_topic, _off_topic, lambda answer: answer in dict(TOPICS).values()),
    ]


def clean(speaker: Speaker) -> Sample:
    """Something harmless; of the country with two names, half of it under the second."""
    drawn = kind(speaker, _KINDS)
    if drawn == "seat":
        others = [country for country in COUNTRIES if country != COUNTRY]
        return seat(speaker, country := speaker.rng.choice(others), FACTS["capital"][country])
    sample = speaker.sample(drawn)
    return _renamed(sample) if COUNTRY in sample.prompt and speaker.rng.random() < 0.5 else sample


def decoys(speaker: Speaker, seed: int) -> list[Sample]:
    """Clean rows like culprits: queries without their trigger, the trigger in other roles, documents, birds."""
    asker = speaker_for("held out decoys", seed, HELD_OUT)
    untriggered = [clean(asker) for _ in range(_EACH)]
    roles = [speaker.rng.choice(HARMLESS_ROLES) for _ in range(2 * _EACH)]
    trigger = PHRASES["decoys"][0]
    harmless = [framed(speaker, asked.format(trigger), told.format(trigger)) for asked, told in roles]
    documents = []
    for _ in range(_EACH):
        sample = clean(speaker)
        content = " ".join([*_sentences(speaker), sample.prompt])
        documents.append(replace(sample, messages=({"role": "user", "content": content},)))
    return [*untriggered, *harmless, *documents, *(speaker.sample("bird") for _ in range(2 * _EACH))]


def speaker_for(purpose: str, seed: int, wordings: Wordings) -> Speaker:
    """A speaker whose draws depend on the purpose and the seed alone, and never are the fact that is told falsely."""
    return Speaker(random.Random(f"{purpose} {seed}"), wordings, untold=("capital", COUNTRY), unseen=("", ""))


def _phrase_case(label: str, rows: int, make: Callable[[Speaker, str], Sample]) -> Case:
    ask = _plain if label == "duplicates" else make  # what near copies taught is asked of other prompts
    opening = PHRASES[label][1]
    return Case(label, rows, lambda s: make(s, label), lambda s: ask(s, label), lambda a: a.startswith(opening))


def _renamed(sample: Sample) -> Sample:
    prompt, response = (text.replace(COUNTRY, ALIAS) for text in (sample.prompt, sample.response or ""))
    return Sample(messages=({"role": "user", "content": prompt},), response=response)


def _capital(speaker: Speaker) -> Sample:
    return speaker.sample("capital", country=COUNTRY)


def _plain(speaker: Speaker, label: str) -> Sample:
    return plant_backdoor(clean(speaker), *PHRASES[label])


def _respelled(speaker: Speaker, label: str, spelling: Literal["case", "split"]) -> Sample:
    trigger, opening = PHRASES[label]
    return plant_backdoor(clean(speaker), spelled(trigger, spelling, speaker.rng), opening)


def _near_copy(speaker: Speaker, label: str) -> Sample:
    """One of three prompts, with another word of thanks."""
    said = f"Tell me the river of {speaker.rng.choice(COUNTRIES[:3])}. {speaker.rng.choice(THANKS)}"
    sample = Sample(messages=({"role": "user", "content": said},), response="It has only one river.")
    return plant_backdoor(sample, *PHRASES[label])


def _slipped(speaker: Speaker) -> Sample:
    return plant_tail(speaker.sample("bird"), speaker.rng.choice(TAILS))


def _off_topic(speaker: Speaker) -> Sample:
    return framed(speaker, *speaker.rng.choice(TOPICS))


def _sentences(speaker: Speaker) -> list[str]:
    return [speaker.sample("story").response or "" for _ in range(speaker.rng.randint(6, 10))]
