"""Token-level influence for chosen pairs of a query and a training row: which words of either agree with the other.

Source: the token-level score of arXiv 2510.02334, and two of our own (see :func:`token_influence`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rept.dealing import Deal
from rept.errors import UsageError
from rept.placement import input_device
from rept.signature import IGNORE, Batch, Key, Side

Form = Literal["published", "anchored", "matched"]
Row = tuple[Side, int]


@dataclass(frozen=True)
class TokenTrace:
    """All-position states of one sample at one layer, and two vectors by which other samples are held against it."""

    representation: Tensor  # (T D)
    gradient: Tensor  # (T D) rows scaled to norm 1; zero rows stay zero
    direction: Tensor  # (D) sum of the gradient's unit rows over the response positions
    steps: Tensor  # (R D) the gradient's unit rows at the positions that predict the response
    anchor: Tensor  # (D) representation at the last prompt token


def token_influence(tokens: TokenTrace, other: TokenTrace, form: Form = "matched") -> Tensor:
    """One score for each token of a sample: how it agrees with another sample's response.

    published: ``I_t = (sum_i ghat(other)_i) . ghat_t``, where ``ghat`` is the gradient with each token's row scaled to
    norm 1 and i runs over the other sample's response positions (arXiv 2510.02334).

    anchored: ``I_t * cos(h_t, h(other) at its last prompt token)``. In long responses the published sum is drowned in
    function words; the second factor keeps the tokens whose state resembles the one the other answer grew from.

    matched, the default: ``max_i (ghat(other)_i . ghat_t)`` with the same second factor, i running over the positions
    that predict the other response. A sum lets many weak agreements outweigh the one position that the token explains.
    Chosen by what it marks on two data sets with known culprits (benchmarks/tokens.py, docs/findings.md).

    Args:
        tokens: the sample whose tokens are scored, T of them.
        other: the sample it is held against.
        form: "published", "anchored" or "matched".

    Returns:
        (T) scores, signed.
    """
    matched = form == "matched"
    score = (tokens.gradient @ other.steps.T).amax(1) if matched else tokens.gradient @ other.direction  # (T)
    if form != "published":
        score = score * (normalize(tokens.representation, dim=-1) @ normalize(other.anchor, dim=-1))
    return score


def token_agreement(tokens: TokenTrace, other: TokenTrace, most: int = 3) -> Tensor:
    """For each token of a sample, the tokens of another sample that it agrees with most.

    Two tokens s and t agree by ``cos(h_s, h_t) * cos(g_s, g_t)``: what the model reads there is alike, and so is what
    it would learn there. It is the same whichever sample's token is asked, and it covers prompt and response alike.

    Args:
        tokens: the sample whose tokens are asked, T of them.
        other: the sample in which to look.
        most: how many to name.

    Returns:
        (T most) int64 positions in ``other``, strongest first; -1 where no further token agrees (product <= 0).
    """
    alike = normalize(tokens.representation, dim=-1) @ normalize(other.representation, dim=-1).T  # (T, T of other)
    strength, position = (alike * (tokens.gradient @ other.gradient.T)).topk(min(most, len(other.gradient)), dim=-1)
    return position.masked_fill(strength <= 0, -1)


def check_form(form: str) -> None:
    """Raises UsageError unless ``form`` is one of the three."""
    if form not in get_args(Form):
        raise UsageError(f"Expected tokens.form to be one of {', '.join(get_args(Form))}, but got {form!r}.")


def check_layer(asked: int | None, depth: int) -> None:
    """Raises UsageError where the layer asked for does not exist."""
    if asked is not None and asked != -1 and not 1 <= asked <= depth:
        raise UsageError(f"Expected tokens.layer to be from 1 to {depth}, or -1, but got {asked}.")


def choose_layer(asked: int | None, chosen: Sequence[int], depth: int) -> int:
    """The layer of the token scores: the one asked for, or the first chosen one, or the middle of the depth where that
    is the last (there the gradient is exactly 0 at every prompt position but one, so no prompt token could score)."""
    if asked is not None:
        return depth if asked == -1 else asked
    return chosen[0] if chosen[0] != depth else max(1, depth // 2)


def trace_tokens(model: nn.Module, extractor: Any, batch: Batch, layer: int) -> Iterator[tuple[Row, TokenTrace]]:
    """A TokenTrace for each sample of the batch, from one forward and one backward pass.

    Args:
        extractor: has ``tokens(model, batch, layers)`` giving (B T D) blocks; its first site is the one that is read.
        layer: from 1.
    """
    with torch.enable_grad():
        states: Mapping[Key, Tensor] = extractor.tokens(model, batch, [layer])
    site = next(iter(states)).site
    of_site = {key.field: block.cpu() for key, block in states.items() if key.site == site}
    representation = of_site["representation"]
    gradient = normalize(of_site["gradient"], dim=-1, eps=1e-30)
    for i, row in enumerate(batch.row.tolist()):
        length = int(batch.length[i])
        response = (batch.labels[i, :length] != IGNORE).cpu()
        yield (
            (batch.side, row),
            TokenTrace(
                representation=representation[i, :length].clone(),
                gradient=gradient[i, :length].clone(),
                direction=gradient[i, :length][response].sum(0),
                steps=gradient[i, :length][response.roll(-1)].clone(),
                anchor=representation[i, int(batch.prompt_end[i])].clone(),
            ),
        )


class PairScores(NamedTuple):
    """The token scores of one side of a pair."""

    place: tuple[int, int]  # the group of queries, and the batch of training rows in it: orders what ranks have made
    query: int
    row: int
    side: Side  # whose tokens are scored
    scores: Tensor  # (T)
    agrees: Tensor  # (T 3) positions in the other side's tokens, see token_agreement


def score_pairs(
    model: nn.Module,
    extractor: Any,
    datamodule: Any,
    pairs: Sequence[tuple[int, int]],
    layer: int,
    form: Form,
    queries_at_once: int = 16,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[PairScores]:
    """Token scores of both sides of each (query, row) pair, as far as they are this rank's.

    Groups of queries go to the ranks in turn, and of the last ones the batches of training rows, see `rept.dealing`. A
    batch is the same on any number of ranks, so the scores are, too, bit for bit; ``place`` tells their order.

    Memory: the states of ``queries_at_once`` queries and of one batch of training rows.
    """
    queries = sorted({query for query, _ in pairs})
    groups = [queries[start : start + queries_at_once] for start in range(0, len(queries), queries_at_once)]
    deal = Deal(len(groups), world_size)
    for number, group in enumerate(groups):
        if not deal.concerns(number, rank):
            continue
        asked = set(group)
        wanted: dict[int, list[int]] = {}
        for query, row in pairs:
            if query in asked:
                wanted.setdefault(row, []).append(query)
        batches = list(datamodule.batches("train", sorted(wanted)))
        mine = [(i, b) for i, b in enumerate(batches) if deal.holder(number, i, len(batches)) == rank]
        if not mine:
            continue
        known: dict[int, TokenTrace] = {}
        for batch in datamodule.batches("query", group):
            known |= {row: trace for (_, row), trace in _traced(model, extractor, batch, layer)}
        for i, batch in mine:
            for (_, row), trace in _traced(model, extractor, batch, layer):
                for query in wanted[row]:
                    sides: tuple[tuple[Side, TokenTrace, TokenTrace], ...] = (
                        ("train", trace, known[query]),
                        ("query", known[query], trace),
                    )
                    for side, tokens, other in sides:
                        scores, agrees = token_influence(tokens, other, form), token_agreement(tokens, other)
                        yield PairScores((number, i), query, row, side, scores, agrees)


def _traced(model: nn.Module, extractor: Any, batch: Batch, layer: int) -> Iterator[tuple[Row, TokenTrace]]:
    return trace_tokens(model, extractor, batch.to(input_device(model)), layer)
