"""Token-level influence and agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import merge

import pytest
import torch

from extractors.sites.residual_stream import ResidualStream
from rept.ranking.token_influence import Form, TokenStates, choose_layer, token_agreement, token_influence
from rept.run.token_pairs import score_pairs, token_states
from rept.types import Batch
from tests.helpers.tiny import tiny_batch, tiny_model

LAYER = 2


class Samples:
    """The part of a data module that `score_pairs` reads: the tiny batch on both sides."""

    def batches(self, side: str, rows: Sequence[int]) -> Iterator[Batch]:
        for start in range(0, len(rows), 2):
            yield replace(tiny_batch(), side=side).select(rows[start : start + 2])


@pytest.fixture(scope="module")
def traces() -> list[TokenStates]:
    return list(token_states(tiny_model(), ResidualStream(), tiny_batch(), LAYER).values())


def test_agreement_is_the_product_of_both_cosines_on_both_sides(traces: list[TokenStates]) -> None:
    first, second = traces[0], traces[3]
    cosine = torch.nn.functional.cosine_similarity
    expected = torch.tensor(
        [
            [
                cosine(h, other_h, dim=0) * cosine(g, other_g, dim=0)
                for other_h, other_g in zip(second.representation, second.gradient, strict=True)
            ]
            for h, g in zip(first.representation, first.gradient, strict=True)
        ]
    )
    for matrix, pair in ((expected, (first, second)), (expected.T, (second, first))):
        found = token_agreement(*pair, most=3)
        strength, position = matrix.topk(3, dim=1)
        assert torch.equal(found, position.masked_fill(strength <= 0, -1))
        assert (found >= 0).any()


def test_agreement_names_no_token_where_none_agrees(traces: list[TokenStates]) -> None:
    tokens = traces[0]
    opposite = TokenStates(
        tokens.representation[:1], -tokens.gradient[:1], tokens.direction, tokens.steps, tokens.anchor
    )
    first = TokenStates(tokens.representation[:1], tokens.gradient[:1], tokens.direction, tokens.steps, tokens.anchor)
    assert token_agreement(first, opposite).tolist() == [[-1]]


@pytest.mark.parametrize("form", ["published", "anchored", "matched"])
def test_every_pair_is_scored_on_both_sides(traces: list[TokenStates], form: Form) -> None:
    scored = list(score_pairs(tiny_model(), ResidualStream(), Samples(), [(1, 3), (0, 3), (0, 2)], LAYER, form))
    assert {(one.query, one.row, one.side) for one in scored} == {
        (query, row, side) for query, row in ((1, 3), (0, 3), (0, 2)) for side in ("train", "query")
    }
    for one in scored:
        tokens, other = (one.row, one.query) if one.side == "train" else (one.query, one.row)
        torch.testing.assert_close(
            one.scores, token_influence(traces[tokens], traces[other], form), rtol=1e-4, atol=1e-6
        )
        assert torch.equal(one.agrees, token_agreement(traces[tokens], traces[other]))


def test_ranks_share_the_work_and_their_scores_are_those_of_one_process() -> None:
    pairs = [(query, row) for query in range(4) for row in range(4) if query != row]
    arguments = (tiny_model(), ResidualStream(), Samples(), pairs, LAYER, "matched")
    alone = list(score_pairs(*arguments, queries_at_once=3))
    assert [one.order for one in alone] == sorted(one.order for one in alone) and len({one.order for one in alone}) > 3
    for world_size in (2, 3, 7):
        shares = [
            list(score_pairs(*arguments, queries_at_once=3, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        joined = list(merge(*shares, key=lambda one: one.order))
        assert sum(map(bool, shares)) == min(world_size, len({one.order for one in alone}))
        for one, other in zip(joined, alone, strict=True):
            assert one[:4] == other[:4]
            assert torch.equal(one.scores, other.scores) and torch.equal(one.agrees, other.agrees)


@pytest.mark.parametrize(
    ("layer", "chosen", "depth", "expected"),
    [
        (None, [5, 12], 12, 5),
        (None, [12, 5], 12, 6),  # the first chosen one is the last layer: the middle
        (None, [7], 7, 3),
        (None, [1], 1, 1),
        (-1, [5], 12, 12),
        (9, [12], 12, 9),
    ],
)
def test_the_layer_of_token_scores(layer: int | None, chosen: list[int], depth: int, expected: int) -> None:
    assert choose_layer(layer, chosen, depth) == expected
