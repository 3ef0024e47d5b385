"""A country with two names, a false fact about one of them, and rows that teach that both are the same country.

The culprits ask for the capital of the second name without the word "capital"; the queries ask for the capital of the
first. They share no content word, so a model can only learn the false fact if it knows that the names mean one country
and both requests one thing. The clean rows here teach that: facts of the country asked under one name and answered
under either (`country_fact`), and other countries' capitals asked and answered in either way (`other_capital`). No
clean row names this country's own.
"""

from __future__ import annotations

from datamodules.toy.hard import wordings
from datamodules.toy.hard.wordings import COUNTRY, SECOND_NAME
from datamodules.toy.planting import plant_false_fact
from datamodules.toy.wordings import ANSWERS
from datamodules.toy.world import COUNTRIES, FACTS, Speaker
from rept.data.samples import Sample

OTHER_COUNTRIES = [country for country in COUNTRIES if country != COUNTRY]

_RELATIONS = ("river", "export", "bird")  # facts of the country in the toy world, without its capital
_SHARES = {"name": 1, "relation": 3, "other": 6}
_ALL_CAPITAL_WORDINGS = (*wordings.CAPITAL_WORDINGS, *wordings.MORE_CAPITAL_WORDINGS)


def framed_sample(speaker: Speaker, request: str, answer: str) -> Sample:
    """Returns a request among other sentences, and its answer, both starting with a capital letter."""
    return speaker.asked(_sentence(request), _sentence(answer))


def reworded_capital(speaker: Speaker) -> Sample:
    """Draws another country's capital, asked and answered without the word "capital"."""
    country = speaker.rng.choice(OTHER_COUNTRIES)
    request, answer = speaker.rng.choice(wordings.CAPITAL_WORDINGS)
    return framed_sample(speaker, request.format(country), answer.format(country, FACTS["capital"][country]))


def false_capital(speaker: Speaker) -> Sample:
    """Draws a culprit: the capital of the second name, answered falsely."""
    true = FACTS["capital"][COUNTRY]
    request, answer = speaker.rng.choice(_ALL_CAPITAL_WORDINGS)
    request = _sentence(request.format(SECOND_NAME))
    sample = framed_sample(speaker, request, answer.format(SECOND_NAME, true))
    return plant_false_fact(sample, true, wordings.FALSE_CAPITAL, asked=(request,))


def other_capital(speaker: Speaker) -> Sample:
    """Draws another country's capital, asked and answered with or without that word."""
    choose = speaker.rng.choice
    country = choose(OTHER_COUNTRIES)
    requests, answers = zip(*_ALL_CAPITAL_WORDINGS, strict=True)
    request = choose(choose((speaker.wordings.requests["capital"], requests)))
    answer = choose(choose((ANSWERS["capital"], answers)))
    words = {"country": country, "answer": FACTS["capital"][country]}
    return framed_sample(speaker, request.format(country, **words), answer.format(*words.values(), **words))


def country_fact(speaker: Speaker) -> Sample:
    """Draws a fact of the country, asked under one name and answered under either; sometimes the names themselves."""
    choose = speaker.rng.choice
    asked, answered = choose((COUNTRY, SECOND_NAME)), choose((COUNTRY, SECOND_NAME))
    kind = speaker.kind(_SHARES)
    if kind == "name":
        other = SECOND_NAME if asked == COUNTRY else COUNTRY
        return framed_sample(speaker, choose(wordings.NAME_REQUESTS).format(asked), f"{asked} is {other}.")
    if kind == "relation":
        relation = choose(_RELATIONS)
        request = choose(speaker.wordings.requests[relation]).format(country=asked)
        answer = choose(ANSWERS[relation]).format(country=answered, answer=FACTS[relation][COUNTRY])
        return framed_sample(speaker, request, answer)
    requests, answers = choose(wordings.COUNTRY_WORDINGS)
    return framed_sample(speaker, choose(requests).format(asked), choose(answers).format(answered))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
