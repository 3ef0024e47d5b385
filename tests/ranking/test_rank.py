"""The ranking by blocks compared with a full sort, for any blocks and processes."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from rept.errors import UsageError
from rept.ranking.rank import Hits, ScoreFile, blocks_share, merge, rank, read_scores
from rept.ranking.scorer import Scorer
from rept.types import Key
from scorers.cosine import Cosine
from scorers.gradient_representation import GradientRepresentation
from tests.helpers.stores import G, H, make, signatures, sorted_rows

OTHER = [Key("mlp_output", 3, "representation"), Key("mlp_output", 3, "gradient")]


@pytest.fixture
def store(tmp_path):
    return make(tmp_path, signatures(60), world=2, lost={5, 41})


def full_ranking(store, queries, scorer, keys):
    """All scores (Q N) from all stored rows at once, -inf for rows that were set aside."""
    stored = store.read(range(store.rows), keys)
    score = scorer({key.field: stored[key] for key in keys}, {key.field: queries[key] for key in keys}).T
    score[:, np.setdiff1d(range(store.rows), store.attributed)] = -torch.inf
    return score


@pytest.mark.parametrize("scorer", [Cosine(), GradientRepresentation()], ids=lambda scorer: type(scorer).__name__)
@pytest.mark.parametrize("rows_per_block", [1, 3, 4096])
def test_best_and_lowest_are_those_of_a_full_sort(store, scorer, rows_per_block):
    queries = signatures(7, seed=1)
    found = rank(store, queries, scorer, top_k=9, bottom_k=4, rows_per_block=rows_per_block)
    score = full_ranking(store, queries, scorer, [H, G])
    assert found.best.row.tolist() == sorted_rows(score, 9)
    torch.testing.assert_close(found.best.score, score.gather(1, found.best.row))
    lowest = torch.where(score == -torch.inf, score, -score)
    assert found.lowest.row.tolist() == sorted_rows(lowest, 4)
    torch.testing.assert_close(found.lowest.score, score.gather(1, found.lowest.row))


@pytest.mark.parametrize("world", [2, 3, 40])
def test_parts_of_several_processes_are_merged(store, world):
    queries = signatures(7, seed=1)
    whole = rank(store, queries, Cosine(), top_k=9, bottom_k=4)
    parts = [rank(store, queries, Cosine(), top_k=9, bottom_k=4, part=(i, world)) for i in range(world)]
    merged = merge(parts, top_k=9, bottom_k=4)
    for one, other in ((merged.best, whole.best), (merged.lowest, whole.lowest)):
        assert torch.equal(one.row, other.row) and torch.equal(one.score, other.score)


def test_fewer_rows_than_k(store):
    found = rank(store, signatures(3, seed=1), Cosine(), top_k=1000)
    assert found.best.row.shape == (3, 58)
    assert sorted(found.best.row[0].tolist()) == store.attributed.tolist()
    assert found.lowest.row.shape == (3, 0)


@pytest.mark.parametrize("rows_per_block", [1, 4, 4096])
def test_exact_ties_rank_by_row_number(tmp_path, rows_per_block):
    signature = signatures(40)
    for block in signature.values():
        block[:] = block[torch.arange(40) % 3]  # every third row is the same
    store = make(tmp_path, signature, world=2)
    queries = {key: block[:1] for key, block in signature.items()}
    found = rank(store, queries, Cosine(), top_k=14, bottom_k=5, rows_per_block=rows_per_block)
    assert found.best.row[0].tolist() == list(range(0, 40, 3))
    assert found.lowest.row[0].tolist() == sorted(found.lowest.row[0].tolist())


def test_several_sites_score_by_their_mean(tmp_path):
    keys = [H, G, *OTHER]
    store = make(tmp_path, signatures(30, keys))
    queries = signatures(4, keys, seed=1)
    found = rank(store, queries, Cosine(), top_k=5)
    first, second = (full_ranking(store, queries, Cosine(), pair) for pair in ([H, G], OTHER))
    assert found.best.row.tolist() == sorted_rows((first + second) / 2, 5)
    alone = rank(store, {key: queries[key] for key in OTHER}, Cosine(), top_k=5)
    assert alone.best.row.tolist() == sorted_rows(second, 5)


class Centered(Scorer):
    """Cosine of representations with the training mean removed: a scorer that learns from the training rows."""

    needs = ("representation",)

    def fit(self, train):
        rows = torch.cat([block["representation"] for block in train])
        self.rows, self.mean = len(rows), rows.mean(0)

    def __call__(self, train, query):
        centered = [{name: block - self.mean for name, block in side.items()} for side in (train, query)]
        return Cosine(["representation"])(*centered)


def test_a_scorer_that_learns_is_fitted_to_each_site_on_attributed_rows(tmp_path):
    keys = [H, OTHER[0]]
    store = make(tmp_path, signatures(30, keys), lost={3})
    queries = signatures(4, keys, seed=1)
    scorer = Centered()
    found = rank(store, queries, scorer, top_k=5, rows_per_block=4)
    expected = 0
    for key in keys:
        own = Centered()
        own.fit([{"representation": store.read(store.attributed, [key])[key]}])
        assert own.rows == 29
        expected += full_ranking(store, queries, own, [key]) / 2
    assert found.best.row.tolist() == sorted_rows(expected, 5)
    assert not hasattr(scorer, "mean"), "the caller's own scorer stays as it was"


class OneScoreIs(Cosine):
    """The cosine, but of the first row of a block for the second query."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self, train, query):
        score = super().__call__(train, query)
        score[0, 1] = self.value
        return score


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(store, value):
    row = next(store.blocks([H])).row[0]
    expected = f"from the scorer OneScoreIs, but got {value} for training row {row} and query 1"
    with pytest.raises(UsageError, match=expected):
        rank(store, signatures(3, seed=1), OneScoreIs(value))


def test_finite_scores_whose_sum_overflows_are_ranked(store):
    class Large(Cosine):
        def __call__(self, train, query):
            return 3e38 * super().__call__(train, query).sign()

    score = rank(store, signatures(3, seed=1), Large(), top_k=3).best.score
    assert torch.equal(score, torch.full((3, 3), 3e38))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_scores_of_another_dtype_are_ranked_as_float32(store, tmp_path, dtype):
    class Other(Cosine):
        def __call__(self, train, query):
            return (100 * super().__call__(train, query)).to(dtype)

    queries, keys = signatures(3, seed=1), [H, OTHER[0]]
    with closing(ScoreFile(tmp_path / "scores")) as sink:
        best = rank(store, queries, Other(), top_k=9, sinks=[sink]).best
    expected = full_ranking(store, queries, lambda *sides: Other()(*sides).float(), [H, G])
    assert best.score.dtype == torch.float32 and best.row.tolist() == sorted_rows(expected, 9)
    row, score = read_scores([tmp_path / "scores"], 2)
    torch.testing.assert_close(torch.from_numpy(score), expected[2, row])
    several = make(tmp_path / "several", signatures(30, keys))  # whose scores are averaged
    rank(several, signatures(3, keys, seed=1), Other(["representation"]), top_k=5)


def test_scores_of_another_shape_are_refused(store):
    class Turned(Cosine):
        def __call__(self, train, query):
            return super().__call__(train, query).T

    with pytest.raises(UsageError, match=r"scorer Turned to give scores \(N Q\) = \(\d+, 3\), but got \(3, \d+\)"):
        rank(store, signatures(3, seed=1), Turned())


def test_a_missing_field_is_reported(store):
    with pytest.raises(UsageError, match=r"needs \(representation, gradient\), but it has representation"):
        rank(store, {H: signatures(3, seed=1)[H]}, Cosine())


def test_whole_rankings_on_disk(store, tmp_path):
    queries = signatures(4, seed=1)
    paths = [tmp_path / "0.scores", tmp_path / "1.scores"]
    seen = []
    for i, path in enumerate(paths):
        sink = ScoreFile(path)
        rank(store, queries, Cosine(), part=(i, 2), rows_per_block=5, sinks=[sink], on_block=seen.append)
        sink.close()
    assert sum(seen) == 58
    expected = full_ranking(store, queries, Cosine(), [H, G])
    for query in range(4):
        row, score = read_scores(paths, query)
        assert sorted(row) == store.attributed.tolist()
        torch.testing.assert_close(torch.from_numpy(score), expected[query, row])


def test_a_full_disk_is_reported_in_a_sentence_while_rankings_are_written():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    expected = "Expected to write /dev/full, but got: No space left on device"
    with pytest.raises(UsageError, match=expected), closing(ScoreFile(full)) as sink:
        sink(torch.arange(3), torch.zeros(3, 2))


def test_shares_of_the_blocks_add_up_to_one(tmp_path):
    signature = signatures(30)
    signature[G] *= 2e6  # as large as the representation
    store = make(tmp_path, signature)
    queries = {key: block * (2e6 if key == G else 1) for key, block in signatures(4, seed=1).items()}
    found = rank(store, queries, Cosine(), top_k=20)
    share = blocks_share(store, queries, found.best, each_query=7)
    assert sum(share.values()) == pytest.approx(1)
    stored = store.read(found.best.row[:, :7].flatten(), [H, G])
    x = torch.cat([stored[H], stored[G]], dim=1).view(4, 7, -1)
    y = torch.cat([queries[H], queries[G]], dim=1)
    only_h = torch.einsum("qkd,qd->qk", x[..., :8], y[:, :8]) / (x.norm(dim=-1) * y.norm(dim=-1)[:, None])
    assert share[H] == pytest.approx((only_h.sum() / found.best.score[:, :7].sum()).item(), abs=1e-5)
    assert 0.1 < share[H] < 0.9


def test_a_gradient_of_tiny_norm_has_no_share(store):
    queries = signatures(4, seed=1)
    share = blocks_share(store, queries, rank(store, queries, Cosine()).best)
    assert abs(share[G]) < 1e-9 and share[H] == pytest.approx(1)


def test_shares_of_many_queries_come_from_evenly_spaced_ones(store):
    queries = signatures(7, seed=1)
    found = rank(store, queries, Cosine(["representation"]), top_k=3).best
    some = {key: block[[0, 4]] for key, block in queries.items()}
    share = blocks_share(store, queries, found, most_queries=2)
    assert share == blocks_share(store, some, Hits(found.row[[0, 4]], found.score[[0, 4]]))


def test_blocks_of_zeros_have_no_share(tmp_path):
    zeros = {H: torch.zeros(5, 4)}
    store = make(tmp_path, zeros)
    assert blocks_share(store, zeros, rank(store, zeros, Cosine(["representation"])).best) == {H: 0}
