"""Token scores of one sample for another: pure formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from torch import Tensor
from torch.nn.functional import normalize

from rept.errors import UsageError

PairForm = Literal["published", "anchored", "matched"]  # of one pair of samples
Form = Literal[PairForm, "distinctive"]  # the last one of whole behaviours, see rept.ranking.distinctive_words


@dataclass(frozen=True)
class TokenStates:
    """States of one sample at all positions of one layer, and the vectors that other samples are compared with."""

    representation: Tensor  # (T D)
    gradient: Tensor  # (T D) rows scaled to norm 1; zero rows stay zero
    direction: Tensor  # (D) sum of the gradient's unit rows over the response positions
    steps: Tensor  # (R D) the gradient's unit rows at the positions that predict the response
    anchor: Tensor  # (D) representation at the last prompt token


def token_influence(tokens: TokenStates, other: TokenStates, form: PairForm = "matched") -> Tensor:
    """One signed score for each token of a sample (T): how it agrees with another sample's response.

    published: ``I_t = (sum_i ghat(other)_i) . ghat_t``, where ``ghat`` is the gradient with each token's row scaled to
    norm 1 and i runs over the other sample's response positions (arXiv 2510.02334).

    anchored: ``I_t * cos(h_t, h(other) at its last prompt token)``. In long responses function words dominate the
    published sum; the second factor keeps the tokens whose state resembles the one from which the other answer starts.

    matched: ``max_i (ghat(other)_i . ghat_t)`` with the same second factor, i running over the positions
    that predict the other response. In a sum, many weak agreements outweigh the one position that the token explains.
    Chosen by what it marks on two data sets with known culprits (benchmarks/tokens.py, docs/findings.md).
    """
    matched = form == "matched"
    score = (tokens.gradient @ other.steps.T).amax(1) if matched else tokens.gradient @ other.direction  # (T)
    if form != "published":
        score = score * (normalize(tokens.representation, dim=-1) @ normalize(other.anchor, dim=-1))
    return score


def token_agreement(tokens: TokenStates, other: TokenStates, most: int = 3) -> Tensor:
    """For each token of a sample, the tokens of another sample that it agrees with most.

    Two tokens s and t agree by ``cos(h_s, h_t) * cos(g_s, g_t)``: what the model reads there is similar, and so is what
    it would learn there. The measure is symmetric, and applies to tokens of prompt and response.

    Returns:
        (T most) int64 positions in ``other``, strongest first; -1 where no further token agrees (product <= 0).
    """
    similar = normalize(tokens.representation, dim=-1) @ normalize(other.representation, dim=-1).T  # (T, T of other)
    strength, position = (similar * (tokens.gradient @ other.gradient.T)).topk(min(most, len(other.gradient)), dim=-1)
    return position.masked_fill(strength <= 0, -1)


def check_form(form: str) -> Form:
    """Returns ``form``; raises UsageError unless it is one of the four."""
    if form not in get_args(Form):
        raise UsageError(f"Expected tokens.form to be one of {', '.join(get_args(Form))}, but got {form!r}.")
    return cast(Form, form)


def check_layer(layer: int | None, depth: int) -> None:
    """Raises UsageError if the layer does not exist."""
    if layer is not None and layer != -1 and not 1 <= layer <= depth:
        raise UsageError(f"Expected tokens.layer to be from 1 to {depth}, or -1, but got {layer}.")


def choose_layer(layer: int | None, chosen: Sequence[int], depth: int) -> int:
    """The layer of the token scores: ``layer`` (-1: the last), or by default the first chosen layer.

    Where the first chosen layer is the last one, the middle of the depth is taken instead: in the last layer the
    gradient is exactly 0 at every prompt position but one, so no other prompt token could score.
    """
    if layer is not None:
        return depth if layer == -1 else layer
    return chosen[0] if chosen[0] != depth else max(1, depth // 2)
