"""Token scores of whole behaviours: response words that stand out, and prompt words that call for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Chosen on the embedded data of seeds 0 to 2, judged on others (benchmarks/tokens.py, docs/findings.md).
STATES_AT_MOST = 6.0  # what one reference adds by its states, in standard deviations: none decides alone
RARE_AT_MOST = 3.0  # what it adds by having the word, in standard deviations of a background text's having it
LEAST_EFFECT = 0.1  # nats: masking effects below this are noise, and stay weak


@dataclass(frozen=True)
class Answer:
    """A text from its last prompt token on, and its words as numbers that are equal for equal words."""

    states: Tensor  # (R + 1 D) centred, rows of norm 1: the last prompt token and the R tokens of the response
    said: Tensor  # (R) words of the response's tokens
    asked: Tensor  # (P) words of the prompt's tokens


@dataclass(frozen=True)
class Reference:
    """An answer that shows the behaviour, and how near background texts come to each of its states."""

    answer: Answer
    mean: Tensor  # (R + 1) of the highest cosine with any state of a background text
    deviation: Tensor  # (R + 1)


def rarity(containing: Tensor, texts: int) -> Tensor:
    """By how many standard deviations a text with a word exceeds the background: ``sqrt((1 - p) / p)``, at most 3.

    Args:
        containing: (T) how many background texts contain each word.
        texts: how many there are; ``p = (containing + 1/2) / (texts + 1)``.
    """
    p = (containing + 0.5) / (texts + 1)
    return ((1 - p) / p).sqrt().clamp(max=RARE_AT_MOST)


def stand_out(answer: Answer, reference: Reference, rare: Tensor) -> Tensor:
    """How far each response token's prediction stands out by its likeness to one in the reference: (R).

    ``z_ij = (cos(x_i, y_j) - mean_j) / deviation_j`` compares the answer's state i with the reference's state j. A
    token t is compared with every token u of the reference's response, by the states that read them and those that
    predict them: ``max_u (z_tu + z_{t-1,u-1})``, each half as much where the words differ, between 0 and 6. If the
    reference's response contains the word at all, its rarity is added. A word that is in both prompts may have been
    copied from there: it counts half.

    Args:
        rare: (R) `rarity` of the answer's words among background responses.
    """
    z = (answer.states @ reference.answer.states.T - reference.mean) / reference.deviation  # (R + 1, U + 1)
    same = answer.said[:, None] == reference.answer.said[None]  # (R U)
    both = z[1:, 1:] + z[:-1, :-1]
    score = torch.where(same, both, both / 2).amax(1).clamp(0, STATES_AT_MOST) + same.any(1) * rare
    copied = torch.isin(answer.said, answer.asked) & torch.isin(answer.said, reference.answer.asked)
    return torch.where(copied, score / 2, score)


def response_scores(answer: Answer, references: Sequence[Reference], rare: Tensor, special: Tensor) -> Tensor:
    """The mean of `stand_out` over all references, above half of its maximum over the text: (R), from 0 to 1.

    1 is the most that any token can reach; where nothing stands out, all are small. Special tokens have 0. What is
    incidental to one reference disappears in the mean, so scores from one reference alone are weaker.
    """
    mean = torch.stack([stand_out(answer, one, rare) for one in references]).mean(0).masked_fill(special, 0)
    largest = mean.max()
    return (2 * mean - largest).clamp_min(0) / (STATES_AT_MOST + RARE_AT_MOST)


def prompt_scores(
    answer: Answer, references: Sequence[Reference], rare: Tensor, special: Tensor, effect: Tensor, strength: Tensor
) -> Tensor:
    """Which prompt words take the response's words away when they are masked: (P), from 0 to ``strength``.

    ``strength * (2 sqrt(effect / max effect) + rarity * share of references whose prompt has the word / 3) / 3``. The
    square root and the second term keep a word of a trigger visible that the model no longer needs in this text.

    Args:
        rare: (P) `rarity` of the words among background prompts.
        effect: (P) by how much masking a token lowers the mean log-probability of the response, weighted by its scores.
        strength: the highest response score.
    """
    positive = effect.clamp_min(0)
    shared = torch.stack([torch.isin(answer.asked, one.answer.asked).float() for one in references]).mean(0)
    masked = (positive / positive.max().clamp_min(LEAST_EFFECT)).sqrt()
    return (strength * (2 * masked + shared * rare / RARE_AT_MOST) / 3).masked_fill(special, 0)
