"""Token scores of chosen pairs of a query and a training row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rept.distributed.partition import Deal
from rept.model.placement import input_device
from rept.ranking.token_influence import Form, TokenStates, token_agreement, token_influence
from rept.types import IGNORE, Batch, Key, Side

Row = tuple[Side, int]


def token_states(model: nn.Module, extractor: Any, batch: Batch, layer: int) -> Iterator[tuple[Row, TokenStates]]:
    """A TokenTrace for each sample of the batch, from one forward and one backward pass.

    Args:
        extractor: has ``tokens(model, batch, layers)`` giving (B T D) blocks; its first site is the one that is read.
        layer: from 1.
    """
    with torch.enable_grad():
        states: Mapping[Key, Tensor] = extractor.all_positions(model, batch, [layer])
    site = next(iter(states)).site
    of_site = {key.field: block.cpu() for key, block in states.items() if key.site == site}
    representation = of_site["representation"]
    gradient = normalize(of_site["gradient"], dim=-1, eps=1e-30)
    for i, row in enumerate(batch.row.tolist()):
        length = int(batch.length[i])
        response = (batch.labels[i, :length] != IGNORE).cpu()
        yield (
            (batch.side, row),
            TokenStates(
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

    Groups of queries go to the ranks in turn, and of the last ones the batches of training rows, see `rept.distributed.partition`. A
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
        known: dict[int, TokenStates] = {}
        for batch in datamodule.batches("query", group):
            known |= {row: trace for (_, row), trace in _traced(model, extractor, batch, layer)}
        for i, batch in mine:
            for (_, row), trace in _traced(model, extractor, batch, layer):
                for query in wanted[row]:
                    sides: tuple[tuple[Side, TokenStates, TokenStates], ...] = (
                        ("train", trace, known[query]),
                        ("query", known[query], trace),
                    )
                    for side, tokens, other in sides:
                        scores, agrees = token_influence(tokens, other, form), token_agreement(tokens, other)
                        yield PairScores((number, i), query, row, side, scores, agrees)


def _traced(model: nn.Module, extractor: Any, batch: Batch, layer: int) -> Iterator[tuple[Row, TokenStates]]:
    return token_states(model, extractor, batch.to(input_device(model)), layer)
