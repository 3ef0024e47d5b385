"""The division of pieces among ranks: complete, even, and each rank reads little more than its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rept.distributed.partition import Partition


@given(pieces=st.integers(1, 60), ranks=st.integers(1, 20), parts=st.integers(1, 30))
def test_a_rank_reads_only_what_it_may_own(pieces, ranks, parts):
    partition = Partition(pieces, ranks)
    for piece in range(pieces):
        owners = {partition.owner(piece, part, parts) for part in range(parts)}
        readers = {rank for rank in range(ranks) if partition.overlaps(piece, rank)}
        assert owners <= readers <= set(range(ranks))
    for rank in range(ranks):
        assert sum(partition.overlaps(piece, rank) for piece in range(pieces)) <= pieces // ranks + 2


@pytest.mark.parametrize(("pieces", "ranks"), [(1, 4), (3, 4), (9, 4), (8, 4), (2, 5), (64, 7)])
def test_ranks_have_equal_shares(pieces, ranks):
    partition, parts = Partition(pieces, ranks), 20
    done = Counter(partition.owner(piece, part, parts) for piece in range(pieces) for part in range(parts))
    assert set(done) == set(range(ranks))
    assert max(done.values()) - min(done.values()) <= 1


def test_parts_follow_one_another_where_a_piece_is_shared():
    assert [Partition(1, 3).owner(0, part, 6) for part in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [Partition(5, 2).owner(piece, 0, 1) for piece in range(5)] == [0, 1, 0, 1, 0]
