"""Token scores of the form `distinctive` as a slow loop over single tokens, in float64. The fast path must equal it."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from rept.types import PreTrainedModel


class WordStates(NamedTuple):
    """One text."""

    input_ids: Tensor  # (T)
    words: list[str]  # of each token
    special: list[bool]
    prompt_length: int
    states: list[list[float]]  # (T D)


def distinctive_scores(
    model: PreTrainedModel, text: WordStates, references: Sequence[WordStates], background: Sequence[WordStates]
) -> list[float]:
    """Returns the score of each token of a text for the behaviour that the references show."""
    start, length = text.prompt_length, len(text.words)
    last = _mean([one.states[one.prompt_length - 1] for one in background])
    later = _mean([state for one in background for state in one.states[one.prompt_length :]])

    def unit(one: WordStates, position: int) -> list[float]:
        centre = last if position == one.prompt_length - 1 else later
        centred = [a - b for a, b in zip(one.states[position], centre, strict=True)]
        norm = sqrt(sum(a * a for a in centred))
        return [a / norm for a in centred]

    def positions(one: WordStates) -> range:
        return range(one.prompt_length - 1, len(one.words))

    def z(reference: WordStates, j: int) -> list[float]:
        """How far each state of the text stands out by its cosine with state j of the reference."""
        direction = unit(reference, j)
        nearest = [max(_dot(direction, unit(one, i)) for i in positions(one)) for one in background]
        mean = sum(nearest) / len(nearest)
        deviation = sqrt(sum((a - mean) ** 2 for a in nearest) / len(nearest))
        return [(_dot(direction, unit(text, i)) - mean) / deviation for i in positions(text)]

    said = [0.0] * (length - start)
    for reference in references:
        columns = [z(reference, j) for j in positions(reference)]
        answer, asked = reference.words[reference.prompt_length :], reference.words[: reference.prompt_length]
        for t, word in enumerate(text.words[start:]):
            pairs = [columns[u + 1][t + 1] + columns[u][t] for u in range(len(answer))]
            best = max(pair if _same(word, other) else pair / 2 for pair, other in zip(pairs, answer, strict=True))
            score = min(max(best, 0.0), 6.0)
            if _among(word, answer):
                score += _rarity(word, [one.words[one.prompt_length :] for one in background])
            copied = _among(word, text.words[:start]) and _among(word, asked)
            said[t] += (score / 2 if copied else score) / len(references)
    said = [0.0 if special else score for score, special in zip(said, text.special[start:], strict=True)]
    largest = max(said)
    response = [max(0.0, 2 * score - largest) / 9 for score in said]

    fill = torch.cat([model.get_input_embeddings()(one.input_ids).double() for one in background]).mean(0)
    before = _log_probabilities(model, text, None, fill)
    effects = []
    for position in range(start):
        after = _log_probabilities(model, text, position, fill)
        lost = sum(w * (a - b) for w, a, b in zip(response, before, after, strict=True)) / max(sum(response), 1e-9)
        effects.append(0.0 if text.special[position] else max(lost, 0.0))
    prompt = []
    for position, effect in enumerate(effects):
        word = text.words[position]
        shared = sum(_among(word, one.words[: one.prompt_length]) for one in references) / len(references)
        rare = _rarity(word, [one.words[: one.prompt_length] for one in background])
        score = max(response) * (2 * sqrt(effect / max(*effects, 0.1)) + shared * rare / 3) / 3
        prompt.append(0.0 if text.special[position] else score)
    return [*prompt, *response]


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


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
