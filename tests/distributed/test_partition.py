"""The dealing of pieces: complete, even, and each rank concerned with its own alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rept.distributed.partition import Deal


@given(pieces=st.integers(1, 60), ranks=st.integers(1, 20), parts=st.integers(1, 30))
def test_a_rank_need_look_only_where_it_is_concerned(pieces, ranks, parts):
    deal = Deal(pieces, ranks)
    for piece in range(pieces):
        holders = {deal.holder(piece, part, parts) for part in range(parts)}
        concerned = {rank for rank in range(ranks) if deal.concerns(piece, rank)}
        assert holders <= concerned <= set(range(ranks))
    for rank in range(ranks):
        assert sum(deal.concerns(piece, rank) for piece in range(pieces)) <= pieces // ranks + 2


@pytest.mark.parametrize(("pieces", "ranks"), [(1, 4), (3, 4), (9, 4), (8, 4), (2, 5), (64, 7)])
def test_ranks_have_equal_shares(pieces, ranks):
    deal, parts = Deal(pieces, ranks), 20
    done = Counter(deal.holder(piece, part, parts) for piece in range(pieces) for part in range(parts))
    assert set(done) == set(range(ranks))
    assert max(done.values()) - min(done.values()) <= 1


def test_parts_follow_one_another_where_a_piece_is_shared():
    assert [Deal(1, 3).holder(0, part, 6) for part in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [Deal(5, 2).holder(piece, 0, 1) for piece in range(5)] == [0, 1, 0, 1, 0]
