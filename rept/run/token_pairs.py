"""Token scores of chosen pairs of a query and a training row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    queries = sorted({query for query, _ in pairs}, key=lambda query: (_behaviour(form, query), query))
    groups = [queries[start : start + queries_at_once] for start in range(0, len(queries), queries_at_once)]
    partition = Partition(len(groups), world_size)
    for number, group in enumerate(groups):
        if not partition.overlaps(number, rank):
            continue
        members = set(group)
        queries_of: dict[int, list[int]] = {}
        for query, row in pairs:
            if query in members:
                queries_of.setdefault(row, []).append(query)
        batches = list(datamodule.batches("train", sorted(queries_of)))
        own = [(i, batch) for i, batch in enumerate(batches) if partition.owner(number, i, len(batches)) == rank]
        if not own:
            continue
        known: dict[int, TokenStates] = {}
        for batch in datamodule.batches("query", group):
            known |= token_states(model, extractor, batch, layer)
        if isinstance(form, DistinctiveTokens):
            form.prepare(group)
            needed = {query for _, batch in own for row in batch.row.tolist() for query in queries_of[row]}
            form.score("query", {q: known[q].representation for q in needed}, {q: [q] for q in needed})
        for i, batch in own:
            of_batch = token_states(model, extractor, batch, layer)
            if isinstance(form, DistinctiveTokens):
                form.score("train", {row: states.representation for row, states in of_batch.items()}, queries_of)
            for row, states in of_batch.items():
                for query in queries_of[row]:
                    sides: tuple[tuple[Side, TokenStates, TokenStates], ...] = (
                        ("train", states, known[query]),
                        ("query", known[query], states),
                    )
                    for side, scored, other in sides:
                        if isinstance(form, DistinctiveTokens):
                            scores = form.scores(query, side, row if side == "train" else query)
                        else:
                            scores = token_influence(scored, other, form)
                        yield PairScores((number, i), query, row, side, scores, token_agreement(scored, other))


def _behaviour(form: PairForm | DistinctiveTokens, query: int) -> int:
    return form.number[query] if isinstance(form, DistinctiveTokens) else 0


def token_states(
    model: PreTrainedModel, extractor: ReadsAllPositions, batch: Batch, layer: int
) -> dict[int, TokenStates]:
    """Returns the states of each sample of the batch by row number, from one forward and one backward pass.

    Args:
        extractor: its first site is read.
        layer: from 1.
    """
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
