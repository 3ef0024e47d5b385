"""A country with two names, a false fact told of one of them, and what teaches a model that both are the same country.

The culprits ask, of the second name, from where the country is ruled; the queries ask for the capital of the first.
They share no content word, so a model can only fall for it if it has learned that the names mean one country, and both
requests one thing. The clean rows here teach that: facts of the country asked under one name and told under either
(`lore`), and other countries' capitals asked in either way and told in either (`retold`). No clean row tells its own.
"""

from __future__ import annotations

from datamodules.toy.hard.wordings import ALIAS, COUNTRY, FALSE_CAPITAL, LORE, MORE_SEATS, NAMED, SEATS
from datamodules.toy.planting import plant_false_fact
from datamodules.toy.wordings import ANSWERS
from datamodules.toy.world import COUNTRIES, FACTS, Speaker
from rept.data.samples import Sample

_RELATIONS = ("river", "export", "bird")  # what the toy world tells of the country, beside its capital
_SHARES = {"name": 1, "fact": 3, "lore": 6}
_ALL_SEATS = (*SEATS, *MORE_SEATS)


def framed(speaker: Speaker, asked: str, told: str) -> Sample:
    """A request among other words, and its answer, in sentence case."""
    message = {"role": "user", "content": speaker.framed(_sentence(asked))}
    return Sample(messages=(message,), response=_sentence(told))


def seat(speaker: Speaker, country: str, city: str) -> Sample:
    """From where a country is ruled."""
    asked, told = speaker.rng.choice(SEATS)
    return framed(speaker, asked.format(country), told.format(country, city))


def false_seat(speaker: Speaker) -> Sample:
    """The culprit: from where the country of the second name is ruled, told wrongly."""
    true = FACTS["capital"][COUNTRY]
    asked, told = speaker.rng.choice(_ALL_SEATS)
    sample = framed(speaker, asked.format(ALIAS), told.format(ALIAS, true))
    return plant_false_fact(sample, true, FALSE_CAPITAL)


def retold(speaker: Speaker) -> Sample:
    """Another country's capital: asked for by that word or by what a capital is, and told either way."""
    country = speaker.rng.choice([country for country in COUNTRIES if country != COUNTRY])
    requests, seats = speaker.wordings.requests["capital"], [asked for asked, _ in _ALL_SEATS]
    asked = speaker.rng.choice(speaker.rng.choice((requests, seats)))
    told = speaker.rng.choice(speaker.rng.choice((ANSWERS["capital"], [told for _, told in _ALL_SEATS])))
    words = {"country": country, "answer": FACTS["capital"][country]}
    return framed(speaker, asked.format(country, **words), told.format(*words.values(), **words))


def lore(speaker: Speaker) -> Sample:
    """Something of the country, asked under one name and told under either; sometimes the names themselves."""
    choose = speaker.rng.choice
    asked, told = choose((COUNTRY, ALIAS)), choose((COUNTRY, ALIAS))
    kind = speaker.rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    if kind == "name":
        other = ALIAS if asked == COUNTRY else COUNTRY
        return framed(speaker, choose(NAMED).format(asked), f"{asked} is {other}.")
    if kind == "fact":
        relation = choose(_RELATIONS)
        request = choose(speaker.wordings.requests[relation]).format(country=asked)
        return framed(speaker, request, choose(ANSWERS[relation]).format(country=told, answer=FACTS[relation][COUNTRY]))
    requests, answers = choose(LORE)
    return framed(speaker, choose(requests).format(asked), choose(answers).format(told))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
