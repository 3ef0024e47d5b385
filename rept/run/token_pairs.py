"""Token scores of chosen pairs of a query and a training row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rept.data.datamodule import AttributionDataModule
from rept.distributed.partition import Partition
from rept.model.placement import input_device
from rept.ranking.token_influence import Form, TokenStates, token_agreement, token_influence
from rept.signatures.extractor import ReadsAllPositions
from rept.types import IGNORE, Batch, Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    form: Form,
    queries_at_once: int = 16,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[PairScores]:
    """Yields the token scores of both sides of each (query, row) pair of this rank's share.

    Groups of queries are partitioned over the ranks, see `rept.distributed.partition`. Batches, and so the scores, are
    the same for any number of ranks, bit for bit. Memory: the states of ``queries_at_once`` queries and of one batch of
    training rows.
    """
    queries = sorted({query for query, _ in pairs})
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
        for i, batch in own:
            for row, states in token_states(model, extractor, batch, layer).items():
                for query in queries_of[row]:
                    for side, scored, other in (("train", states, known[query]), ("query", known[query], states)):
                        yield PairScores(
                            order=(number, i),
                            query=query,
                            row=row,
                            side=side,  # type: ignore[arg-type]  # a literal in a tuple is inferred as str
                            scores=token_influence(scored, other, form),
                            agrees=token_agreement(scored, other),
                        )


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
