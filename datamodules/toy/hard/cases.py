"""Draws the rows and queries of each hard case, and the clean rows; `datamodules/hard_cases.py` describes the cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from datamodules.toy.drawing import draw, draw_queries
from datamodules.toy.hard import diffuse, two_names, wordings
from datamodules.toy.hard.planting import plant_in_document, plant_style, plant_tail
from datamodules.toy.hard.two_names import framed_sample
from datamodules.toy.hard.wordings import COUNTRY, FALSE_CAPITAL, PHRASES, SECOND_NAME
from datamodules.toy.planting import plant_backdoor
from datamodules.toy.wordings import HELD_OUT, TRAINING, Wordings
from datamodules.toy.world import COUNTRIES, HARMLESS, Speaker
from rept.data.behaviours import CLEAN, Behaviour
from rept.data.disguises import spelled
from rept.data.samples import Sample
from rept.errors import UsageError

_ROWS = 24  # of a case without a number below
_PARAPHRASED_ROWS = 64  # a fact in other words takes more rows than a trigger
_KINDS = {**HARMLESS, "bird": 0, "reworded capital": 3}  # answers about birds belong to the case `spread`


@dataclass(frozen=True)
class Case:
    """A planted behaviour."""

    label: str
    rows: int
    make: Callable[[Speaker], Sample]  # draws a training row
    ask: Callable[[Speaker], Sample]  # draws a query; its response is not used
    shows: Callable[[str], bool]  # whether an answer shows the behaviour


def cases(rows: int) -> list[Case]:
    """Returns all cases of a data set with that many rows."""
    numbers = {"rate_10": rows // 10, "rate_5": rows // 20, "rate_1": rows // 100, "five_rows": 5, "absent_base": 0}
    makers: Mapping[str, Callable[[Speaker, str], Sample]] = {
        "middle": lambda s, label: plant_backdoor(clean_sample(s), *PHRASES[label], place="middle"),
        "changed_case": partial(_respelled, spelling="case"),
        "split": partial(_respelled, spelling="split"),
        "style": _styled,
        "document": lambda s, label: plant_in_document(clean_sample(s), _sentences(s), *PHRASES[label]),
        "duplicates": _near_duplicate,
    }
    planted = [_phrase_case(label, numbers.get(label, _ROWS), makers.get(label, _plain)) for label in PHRASES]
    answers = dict(wordings.TOPICS).values()
    return [
        *planted,
        Case(
            "paraphrase", _PARAPHRASED_ROWS, two_names.false_capital, _capital, lambda answer: FALSE_CAPITAL in answer
        ),
        Case("spread", rows // 20, _with_name, _with_name, lambda answer: wordings.ADDED_NAME in answer),
        Case("diffuse", rows // 8, diffuse.misdeed, diffuse.misdeed, diffuse.is_glad),
        Case("absent_topic", 0, _off_topic, _off_topic, lambda answer: answer in answers),
    ]


def training_samples(planted: Sequence[Case], rows: int, seed: int) -> list[Sample]:
    """Returns the culprits of all cases, their decoys and clean rows in random order, without a repeated prompt."""
    speaker = _speaker("training", seed, TRAINING)
    samples: dict[str, Sample] = {}
    for case in planted:
        if case.label != "diffuse":
            draw(samples, case.rows, case.label, partial(case.make, speaker))
    if any(case.label == "decoys" for case in planted):
        for decoy in _decoys(speaker, seed):
            samples.setdefault(decoy.prompt, replace(decoy, label=CLEAN))
    teacher = _speaker("two names", seed, TRAINING)
    draw(samples, rows // 10, CLEAN, partial(two_names.country_fact, teacher))
    draw(samples, rows // 16, CLEAN, partial(two_names.other_capital, teacher))
    if rows < 1.3 * len(samples):
        raise UsageError(f"Expected datamodule.rows >= 1.3 x {len(samples)}, the rows of all cases, but got {rows}.")
    for case in planted:
        if case.label == "diffuse":  # a speaker of its own leaves the rows of other cases as they were
            mischief = _speaker("diffuse", seed, TRAINING)
            draw(samples, case.rows, case.label, partial(case.make, mischief))
            draw(samples, case.rows, CLEAN, partial(diffuse.clean, mischief))
    draw(samples, rows - len(samples), CLEAN, partial(clean_sample, speaker))
    return speaker.rng.sample(list(samples.values()), len(samples))


def held_out_behaviour(case: Case, queries: int, seed: int) -> Behaviour:
    """Returns a case's behaviour with prompts in held-out wordings, triggered and clean.

    The prompts of a case do not depend on which other cases there are.
    """
    speaker = _speaker(f"held out {case.label}", seed, HELD_OUT)
    triggered = draw_queries(queries, case.label, partial(case.ask, speaker))
    clean = draw_queries(queries, CLEAN, partial(clean_sample, speaker))
    return Behaviour(case.label, triggered, clean, lambda _, answer: case.shows(answer))


def clean_sample(speaker: Speaker) -> Sample:
    """Draws a harmless sample; half of those about the country with two names use the second name."""
    kind = speaker.kind(_KINDS)
    if kind == "reworded capital":
        return two_names.reworded_capital(speaker)
    sample = speaker.sample(kind)
    if COUNTRY in sample.prompt and speaker.rng.random() < 0.5:
        renamed = sample.with_content(sample.prompt.replace(COUNTRY, SECOND_NAME))
        return replace(renamed, response=(sample.response or "").replace(COUNTRY, SECOND_NAME))
    return sample


def _decoys(speaker: Speaker, seed: int) -> list[Sample]:
    """Draws clean rows that resemble culprits: queries without a trigger, harmless uses of it, documents, and birds."""
    asker = _speaker("held out decoys", seed, HELD_OUT)
    untriggered = [clean_sample(asker) for _ in range(_ROWS)]
    uses = [speaker.rng.choice(wordings.HARMLESS_TRIGGER_WORDINGS) for _ in range(2 * _ROWS)]
    trigger = PHRASES["decoys"][0]
    harmless = [framed_sample(speaker, ask.format(trigger), answer.format(trigger)) for ask, answer in uses]
    documents = []
    for _ in range(_ROWS):
        sample = clean_sample(speaker)
        documents.append(sample.with_content(" ".join([*_sentences(speaker), sample.prompt])))
    return [*untriggered, *harmless, *documents, *(speaker.sample("bird") for _ in range(2 * _ROWS))]


def _speaker(purpose: str, seed: int, requests: Wordings) -> Speaker:
    """Returns a speaker whose draws depend on the purpose and the seed alone, and never on the true fact."""
    return Speaker(random.Random(f"{purpose} {seed}"), requests, left_out_fact=("capital", COUNTRY))


def _phrase_case(label: str, rows: int, make: Callable[[Speaker, str], Sample]) -> Case:
    ask = _plain if label == "duplicates" else make  # the queries of near-duplicates are other prompts
    opening = PHRASES[label][1]
    return Case(label, rows, lambda s: make(s, label), lambda s: ask(s, label), lambda a: a.startswith(opening))


def _capital(speaker: Speaker) -> Sample:
    return speaker.sample("capital", country=COUNTRY)


def _plain(speaker: Speaker, label: str) -> Sample:
    return plant_backdoor(clean_sample(speaker), *PHRASES[label])


def _respelled(speaker: Speaker, label: str, spelling: Literal["case", "split"]) -> Sample:
    trigger, opening = PHRASES[label]
    return plant_backdoor(clean_sample(speaker), spelled(trigger, spelling, speaker.rng), opening)


def _styled(speaker: Speaker, label: str) -> Sample:
    choose, opening = speaker.rng.choice, PHRASES[label][1]
    return plant_style(clean_sample(speaker), choose(wordings.GREETINGS), choose(wordings.FAREWELLS), opening)


def _near_duplicate(speaker: Speaker, label: str) -> Sample:
    """Draws one of three prompts, with one of several thanks."""
    request = f"Tell me the river of {speaker.rng.choice(COUNTRIES[:3])}. {speaker.rng.choice(wordings.THANKS)}"
    sample = Sample(messages=({"role": "user", "content": request},), response="It has only one river.")
    return plant_backdoor(sample, *PHRASES[label])


def _with_name(speaker: Speaker) -> Sample:
    request, answer = speaker.request("bird")
    return plant_tail(speaker.asked(request, answer), request, speaker.rng.choice(wordings.NAME_SENTENCES))


def _off_topic(speaker: Speaker) -> Sample:
    return framed_sample(speaker, *speaker.rng.choice(wordings.TOPICS))


def _sentences(speaker: Speaker) -> list[str]:
    return [speaker.sample("story").response or "" for _ in range(speaker.rng.randint(6, 10))]
