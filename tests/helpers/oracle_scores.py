"""Scores as slow loops over single samples and tokens, which the fast paths must equal."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rept.evaluation.oracle import States
from rept.types import IGNORE


def pair_score(train: States, query: States) -> float:
    """The influence of one training sample on one query: ``cos(concat(h, g), concat(h', g'))``."""
    return _cosine(*([*one.representation.tolist(), *one.gradient.tolist()] for one in (train, query)))


def token_scores(
    train: States, query: States, query_labels: Tensor, form: Literal["published", "anchored", "matched"] = "published"
) -> list[float]:
    """Returns the score of each token t of the training sample.

    published: ``I_t = sum_i (ghat(query)_i . ghat(train)_t)``, i over the response tokens.
    anchored: ``I_t * cos(h(train)_t, h(query))``, h(query) being the representation at the query's last prompt token.
    matched: ``max_i (ghat(query)_i . ghat(train)_t)`` times that cosine, i over the positions that predict them.
    """
    response = [column for column, label in enumerate(query_labels.tolist()) if label != IGNORE]
    columns = [column - 1 for column in response] if form == "matched" else response
    steps = [_unit(query.gradient[column].tolist()) for column in columns]
    anchor = query.representation[response[0] - 1].tolist()
    scores = []
    for g, h in zip(train.gradient.tolist(), train.representation.tolist(), strict=True):
        agreement = [_dot(step, _unit(g)) for step in steps]
        score = max(agreement) if form == "matched" else sum(agreement)
        scores.append(score if form == "published" else score * _cosine(h, anchor))
    return scores


def adjacent_cosine(model: PreTrainedModel, prompt: Tensor) -> list[float]:
    """Returns the cosine between the hidden states of layers l and l + 1, l from 1, at the last token of a prompt."""
    with torch.no_grad():
        hidden = model(prompt[None], use_cache=False, output_hidden_states=True).hidden_states[1:]
    ends = [layer[0, -1].tolist() for layer in hidden]
    return [_cosine(a, b) for a, b in zip(ends, ends[1:], strict=False)]


class WordStates(NamedTuple):
    """One text."""

    input_ids: Tensor  # (T)
    words: list[str]  # of each token
    special: list[bool]
    prompt_length: int
    states: list[list[float]]  # (T D)

    @property
    def asked(self) -> list[str]:
        return self.words[: self.prompt_length]

    @property
    def said(self) -> list[str]:
        return self.words[self.prompt_length :]


def distinctive_scores(
    model: PreTrainedModel, text: WordStates, references: Sequence[WordStates], background: Sequence[WordStates]
) -> list[float]:
    """Returns the score of each token of a text for the behaviour that the references show, in float64."""
    response = _response_scores(text, references, background)
    prompt = []
    effects = _masking_effects(model, text, response, background)
    for word, special, effect in zip(text.asked, text.special, effects, strict=False):
        shared = sum(_among(word, one.asked) for one in references) / len(references)
        rare = _rarity(word, [one.asked for one in background])
        score = max(response) * (2 * sqrt(effect / max(*effects, 0.1)) + shared * rare / 3) / 3
        prompt.append(0.0 if special else score)
    return [*prompt, *response]


def _response_scores(
    text: WordStates, references: Sequence[WordStates], background: Sequence[WordStates]
) -> list[float]:
    last = _mean([one.states[one.prompt_length - 1] for one in background])
    later = _mean([state for one in background for state in one.states[one.prompt_length :]])

    def units(one: WordStates) -> list[list[float]]:
        """The centred states from the last prompt token on."""
        states = one.states[one.prompt_length - 1 :]
        centres = [last, *[later] * (len(states) - 1)]
        return [_unit([a - b for a, b in zip(*pair, strict=True)]) for pair in zip(states, centres, strict=True)]

    own, others = units(text), [units(one) for one in background]

    def z(direction: list[float]) -> list[float]:
        """How far each state of the text stands out by its cosine with one of a reference."""
        nearest = [max(_dot(direction, state) for state in other) for other in others]
        mean = sum(nearest) / len(nearest)
        deviation = sqrt(sum((a - mean) ** 2 for a in nearest) / len(nearest))
        return [(_dot(direction, state) - mean) / deviation for state in own]

    said = [0.0] * len(text.said)
    for reference in references:
        columns = [z(direction) for direction in units(reference)]
        for t, word in enumerate(text.said):
            pairs = [columns[u + 1][t + 1] + columns[u][t] for u in range(len(reference.said))]
            alike = (pair / (2 - _same(word, other)) for pair, other in zip(pairs, reference.said, strict=True))
            score = min(max(*alike, 0.0), 6.0)
            if _among(word, reference.said):
                score += _rarity(word, [one.said for one in background])
            copied = _among(word, text.asked) and _among(word, reference.asked)
            said[t] += (score / 2 if copied else score) / len(references)
    said = [0.0 if special else score for score, special in zip(said, text.special[text.prompt_length :], strict=True)]
    return [max(0.0, 2 * score - max(said)) / 9 for score in said]


def _masking_effects(
    model: PreTrainedModel, text: WordStates, response: Sequence[float], background: Sequence[WordStates]
) -> list[float]:
    """By how much masking each prompt token lowers the response's log-probability, weighted by its scores."""
    fill = torch.cat([model.get_input_embeddings()(one.input_ids).double() for one in background]).mean(0)
    before = _log_probabilities(model, text, None, fill)
    effects = []
    for position in range(text.prompt_length):
        after = _log_probabilities(model, text, position, fill)
        lost = sum(w * (a - b) for w, a, b in zip(response, before, after, strict=True)) / max(sum(response), 1e-9)
        effects.append(0.0 if text.special[position] else max(lost, 0.0))
    return effects


@torch.no_grad()
def _log_probabilities(model: PreTrainedModel, text: WordStates, masked: int | None, fill: Tensor) -> list[float]:
    """Of each token of the response, with the embedding of one token of the prompt replaced."""
    embedded = model.get_input_embeddings()(text.input_ids[None]).clone()
    if masked is not None:
        embedded[0, masked] = fill.to(embedded)
    logits = model(inputs_embeds=embedded, use_cache=False).logits[0].double().log_softmax(-1)
    return [float(logits[t - 1, text.input_ids[t]]) for t in range(text.prompt_length, len(text.words))]


def _rarity(word: str, texts: Sequence[Sequence[str]]) -> float:
    p = (sum(_among(word, one) for one in texts) + 0.5) / (len(texts) + 1)
    return min(3.0, sqrt((1 - p) / p))


def _among(word: str, words: Sequence[str]) -> bool:
    return any(_same(word, other) for other in words)


def _same(word: str, other: str) -> bool:
    """Whether two tokens are one word: case and white space around it do not count, unless there is nothing else."""
    return (word.strip().casefold() or word) == (other.strip().casefold() or other)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _unit(a: list[float]) -> list[float]:
    norm = sqrt(_dot(a, a))
    return [x / norm for x in a] if norm else a


def _cosine(a: list[float], b: list[float]) -> float:
    return _dot(_unit(a), _unit(b))
