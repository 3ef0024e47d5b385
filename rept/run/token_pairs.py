"""Token scores of chosen pairs of a query and a training row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rept.data.datamodule import AttributionDataModule
from rept.distributed.partition import Partition
from rept.model.placement import input_device
from rept.ranking.token_influence import PairForm, TokenStates, token_agreement, token_influence
from rept.run.distinctive_tokens import DistinctiveTokens
from rept.signatures.extractor import ReadsAllPositions
from rept.types import IGNORE, Batch, PreTrainedModel, Side


class PairScores(NamedTuple):
    """The token scores of one side of a pair."""

    order: tuple[int, int]  # the group of queries and the batch of training rows in it, to sort what ranks computed
    query: int
    row: int
    side: Side  # whose tokens are scored
    scores: Tensor  # (T)
    agrees: Tensor  # (T 3) positions in the other side's tokens, see token_agreement


def score_pairs(
    model: PreTrainedModel,
    extractor: ReadsAllPositions,
    datamodule: AttributionDataModule,
    pairs: Sequence[tuple[int, int]],
    layer: int,
    form: PairForm | DistinctiveTokens,
    queries_at_once: int = 128,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[PairScores]:
    """Yields the token scores of both sides of each (query, row) pair of this rank's share.

    Groups of queries are partitioned over the ranks, see `rept.distributed.partition`. Batches, and so the scores, are
    the same for any number of ranks, bit for bit. Memory: the states of ``queries_at_once`` queries and of one batch of
    training rows.

    Args:
        form: of the scores of single pairs, or what scores texts for whole behaviours.
    """
    groups = _groups(pairs, form.number if isinstance(form, DistinctiveTokens) else {}, queries_at_once)
    partition = Partition(len(groups), world_size)
    for number, (group, queries_of) in enumerate(groups):
        if not partition.overlaps(number, rank):
            continue
        batches = list(datamodule.batches("train", sorted(queries_of)))
        own = {(number, i): one for i, one in enumerate(batches) if partition.owner(number, i, len(batches)) == rank}
        if not own:
            continue
        known: dict[int, TokenStates] = {}
        for batch in datamodule.batches("query", group):
            known |= token_states(model, extractor, batch, layer)
        if isinstance(form, DistinctiveTokens):
            form.prepare(group)
            needed = {query for batch in own.values() for row in batch.row.tolist() for query in queries_of[row]}
            form.score("query", {q: known[q].representation for q in needed}, {q: [q] for q in needed})
        for order, batch in own.items():
            states = token_states(model, extractor, batch, layer)
            if isinstance(form, DistinctiveTokens):
                form.score("train", {row: one.representation for row, one in states.items()}, queries_of)
            for row, own_states in states.items():
                for query in queries_of[row]:
                    for side, scores, agrees in _both_sides(own_states, row, known[query], query, form):
                        yield PairScores(order, query, row, side, scores, agrees)


def _groups(
    pairs: Sequence[tuple[int, int]], behaviours: Mapping[int, int], size: int
) -> list[tuple[list[int], dict[int, list[int]]]]:
    """Queries, those of one behaviour together, in groups, each with the queries of every row in its pairs."""
    queries = sorted({query for query, _ in pairs}, key=lambda query: (behaviours.get(query, 0), query))
    groups: list[tuple[list[int], dict[int, list[int]]]]
    groups = [(queries[start : start + size], {}) for start in range(0, len(queries), size)]
    queries_of = {query: of_rows for group, of_rows in groups for query in group}
    for query, row in pairs:
        queries_of[query].setdefault(row, []).append(query)
    return groups


def _both_sides(
    train: TokenStates, row: int, asked: TokenStates, query: int, form: PairForm | DistinctiveTokens
) -> Iterator[tuple[Side, Tensor, Tensor]]:
    sides: tuple[tuple[Side, int, TokenStates, TokenStates], ...]
    sides = (("train", row, train, asked), ("query", query, asked, train))
    for side, text, own, other in sides:
        if isinstance(form, DistinctiveTokens):
            scores = form.scores(query, side, text)
        else:
            scores = token_influence(own, other, form)
        yield side, scores, token_agreement(own, other)


def token_states(
    model: PreTrainedModel, extractor: ReadsAllPositions, batch: Batch, layer: int
) -> dict[int, TokenStates]:
    """Returns the states of each sample by row number, at the extractor's first site, from one forward and backward."""
    batch = batch.to(input_device(model))
    with torch.enable_grad():
        blocks = extractor.all_positions(model, batch, [layer])
    site = next(iter(blocks)).site
    of_site = {key.field: block.cpu() for key, block in blocks.items() if key.site == site}
    representation = of_site["representation"]
    gradient = normalize(of_site["gradient"], dim=-1, eps=1e-30)
    found = {}
    for i, row in enumerate(batch.row.tolist()):
        length = int(batch.length[i])
        response = (batch.labels[i, :length] != IGNORE).cpu()
        found[row] = TokenStates(
            representation=representation[i, :length].clone(),  # a view would keep the whole batch in memory
            gradient=gradient[i, :length].clone(),
            direction=gradient[i, :length][response].sum(0),
            steps=gradient[i, :length][response.roll(-1)].clone(),
            anchor=representation[i, int(batch.prompt_end[i])].clone(),
        )
    return found
