"""Behaviour rankings compared with a direct computation in float64, and their invariances."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from rept.ranking import behaviours as ranking
from rept.ranking.behaviour_rule import FOLDS
from rept.ranking.behaviour_scorer import BehaviourScorer, Direction
from rept.ranking.behaviours import fit_behaviours, query_means, rank_behaviours
from rept.ranking.fitting import reservoir_sample
from rept.ranking.spectrum import spectrum
from rept.store.reader import AttributionStore
from rept.types import Key
from scorers.adaptive import Adaptive
from scorers.centroid import Centroid
from scorers.fisher import Fisher
from tests.helpers.stores import G, H, batches, signatures, write

ROWS, QUERIES, WIDTH = 120, 14, 8
GROUPS = {"many": list(range(9)), "one": [9]}
CLEAN = [10, 11, 12, 13]
SCORERS = [Adaptive(), Centroid(), Fisher()]


def stores(folder, world=1, zero=()):
    made = []
    for side, rows, seed in (("train", ROWS, 0), ("query", QUERIES, 1)):
        values = signatures(rows, width=WIDTH, seed=seed)
        for key in values:
            values[key] = values[key] * torch.linspace(0.2, 2, WIDTH) + values[key].abs().mean()
            values[key][list(zero)] = 0
        write(folder, values, side, world=world, plan=batches(rows), dtype="float32")
        AttributionStore.finish(folder, side, rows)
        made.append(AttributionStore(folder, side))
    return made


def small_stores(folder, rows, asked):
    for side, values in (("train", rows), ("query", asked)):
        write(folder, {H: values}, side, plan=batches(len(values)), dtype="float32")
        AttributionStore.finish(folder, side, len(values))
    return AttributionStore(folder, "train"), AttributionStore(folder, "query")


def scored(train, query, scorer, keys=(H, G), clean=CLEAN, groups=GROUPS):
    """(N B) in the order of row numbers."""
    rule = fit_behaviours(scorer, train, query, groups, clean, list(keys))
    out = torch.full((train.rows, len(groups)), torch.nan)
    rank_behaviours(train, rule, len(groups), sinks=[lambda row, score: out.index_copy_(0, row, score)])
    return out.numpy()


def directly(train, query, scorer, group, clean, keys=(H, G)):
    """One behaviour's scores (N) of rows, and (k) of its queries by the others, by inverse matrices in NumPy."""
    folds = [[row for i, row in enumerate(group) if i % FOLDS != fold] for fold in range(FOLDS)]
    z, held_out = [], []
    for key in keys:
        x, q = (store.read(range(store.rows), [key])[key].double().numpy() for store in (train, query))
        x, q = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, q))
        z.append(in_field(x, q, x, scorer, group, clean))
        held_out.append(
            [in_field(x, q, q[[row]], scorer, folds[i % FOLDS], clean)[0] for i, row in enumerate(group)]
            if len(group) > 1
            else []
        )
    z, held_out = np.array(z), np.array(held_out)
    if len(group) == 1:
        return np.log(np.exp(z).mean(0)), None
    mean, error = held_out.mean(1), (held_out.var(1) * len(group) + 1) / len(group) ** 2
    level = np.minimum(np.maximum(mean, 0) * np.maximum(1 - error / mean**2, 0), np.sort(z, axis=1)[:, -5])
    level = np.maximum(level, 0)
    weight = level / np.maximum((z**2).mean(1) - 0.1 * level**2, 1)
    if not weight.any():
        return np.log(np.exp(z).mean(0)), np.log(np.exp(held_out).mean(0))
    scale = deviations(weight @ z)[1]
    return weight @ z / scale, weight @ held_out / scale


def in_field(x, q, scored, scorer, group, clean):
    """Scores of unit rows in deviations of those of the training rows x."""
    mu, c = x.mean(0), np.cov(x.T, bias=True)

    def error(rows):
        return (((rows - rows.mean(0)) ** 2).sum() + np.trace(c)) / len(rows) ** 2

    shift, noise = q[group].mean(0) - mu, error(q[group])
    if clean:
        moved = q[clean].mean(0) - mu
        share = max(0, 1 - error(q[clean]) / (moved @ moved))
        shift, noise = shift - share * moved, noise + share**2 * error(q[clean])
    return by_scorer(scorer, x - mu, scored - mu, c, shift, noise, len(group))


def deviations(s):
    median = np.sort(s)[(len(s) - 1) // 2]
    return median, np.sqrt(np.mean((s[s < median] - median) ** 2)), np.sqrt(np.mean((s[s > median] - median) ** 2))


def by_scorer(scorer, x, scored, c, shift, noise, count):
    def cosine(rows, ridge):
        m = np.linalg.inv(np.eye(len(c)) + c / ridge)
        return rows @ m @ shift / np.sqrt(np.einsum("nd,de,ne->n", rows, m, rows))

    if isinstance(scorer, Centroid):
        s, t = (rows @ shift / np.linalg.norm(rows, axis=1) for rows in (x, scored))
    elif isinstance(scorer, Fisher):
        m = np.linalg.inv(c + scorer.shrinkage * np.trace(c) / len(c) * np.eye(len(c)))
        s, t = x @ m @ shift, scored @ m @ shift
    else:
        ridges = [10 ** (step / 2) * np.trace(c) / len(c) for step in range(-4, 7)]
        signal = max(shift @ shift - noise, 0)
        expected = noise / np.trace(c) * (c**2).sum() / signal if signal else np.inf
        expected = min(max(expected, ridges[0]), ridges[-1])

        def value(ridge):
            _, below, above = deviations(cosine(x, ridge))
            return np.log(above / below) - scorer.weight / count * abs(np.log(ridge / expected))

        best = max(ridges, key=value)
        s, t = cosine(x, best), cosine(scored, best)
    median, below, _ = deviations(s)
    return (t - median) / below


@pytest.mark.parametrize("clean", [CLEAN, []])
@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_against_a_direct_computation(tmp_path, scorer, clean):
    train, query = stores(tmp_path)
    got = scored(train, query, scorer, clean=clean)
    for i, group in enumerate(GROUPS.values()):
        np.testing.assert_allclose(got[:, i], directly(train, query, scorer, group, clean)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_shards_and_blocks_change_nothing(tmp_path, scorer, monkeypatch):
    expected = scored(*stores(tmp_path / "one"), scorer)
    monkeypatch.setattr(ranking, "_AT_ONCE", 7)
    monkeypatch.setattr(ranking, "EXAMPLES", 1)
    np.testing.assert_allclose(scored(*stores(tmp_path / "three", world=3), scorer), expected, rtol=1e-5, atol=1e-5)


def test_rows_without_a_signature_in_a_field_score_as_ordinary_ones_there(tmp_path):
    train, query = stores(tmp_path, zero=[3])
    got = scored(train, query, Adaptive())
    assert np.isfinite(got).all() and got[3] == pytest.approx(0)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_rows_that_are_all_alike_score_zero(tmp_path, scorer):
    for side in ("train", "query"):
        write(tmp_path, {H: torch.ones(20, 4)}, side, plan=batches(20))
        AttributionStore.finish(tmp_path, side, 20)
    train, query = AttributionStore(tmp_path, "train"), AttributionStore(tmp_path, "query")
    assert (scored(train, query, scorer, keys=[H], groups={"all": [0, 1]}, clean=[]) == 0).all()


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
@pytest.mark.parametrize("values", [torch.ones(1, 4), torch.zeros(3, 4)], ids=["one row", "zero rows"])
@pytest.mark.parametrize("widest", [4, 3])
def test_where_nothing_varies_all_rows_score_zero(tmp_path, scorer, values, widest, monkeypatch):
    monkeypatch.setattr(ranking, "spectrum", partial(spectrum, widest=widest))
    got = scored(*small_stores(tmp_path, values, torch.eye(4)[:2]), scorer, keys=[H], groups={"all": [0, 1]}, clean=[])
    assert got.shape == (len(values), 1) and (got == 0).all()


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
@pytest.mark.parametrize("ordinary", [1, 2, 5])
def test_a_row_stands_out_from_others_that_are_all_alike(tmp_path, scorer, ordinary):
    rows = torch.tensor([[-1.0, 0.2, 0.1]] * ordinary + [[1.0, 0.1, 0.3]])
    stored = small_stores(tmp_path, rows, torch.tensor([[1.0, 0.0, 0.2]]))
    got = scored(*stored, scorer, keys=[H], groups={"all": [0]}, clean=[])
    assert got[-1, 0] > got[:-1, 0].max() + 0.5


def test_fields_are_weighted_where_most_rows_have_the_lowest_score(tmp_path):
    generator = torch.Generator().manual_seed(0)
    alike, near = torch.tensor([[-1.0, 0.2, 0.1]]).repeat(9, 1), torch.tensor([1.0, 0.1, 0.3])
    rows, asked = (near + 0.05 * torch.randn(6, 3, generator=generator) for _ in range(2))
    stored = small_stores(tmp_path, torch.cat([alike, rows]), asked)
    rule = fit_behaviours(Centroid(), *stored, {"all": list(range(6))}, [], [H])
    (deviation,) = rule.fields[H].deviation.tolist()
    assert deviation > 0 and (rule.weight > 0).all()
    assert rank_behaviours(stored[0], rule, 1, top_k=6).row[0].sort().values.tolist() == list(range(9, 15))


def test_memory_does_not_grow_with_the_number_of_behaviours(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ranking, "EXAMPLES", 4)
    scored_by = ranking.direction_scores
    monkeypatch.setattr(
        ranking, "direction_scores", lambda rows, of, one: seen.append(len(one)) or scored_by(rows, of, one)
    )
    fit_behaviours(Adaptive(), *stores(tmp_path), {str(i): [i] for i in range(10)}, CLEAN, [H])
    assert set(seen) == {4 * 11, 2 * 11}


def test_the_best_rows_are_those_with_the_highest_scores(tmp_path):
    train, query = stores(tmp_path)
    rule = fit_behaviours(Adaptive(), train, query, GROUPS, CLEAN, [H, G])
    whole = scored(train, query, Adaptive())
    parts = [rank_behaviours(train, rule, 2, top_k=9, part=(i, 3)) for i in range(3)]
    merged = ranking.Hits.merged(parts, 9)
    for i in range(2):
        assert merged.row[i].tolist() == np.lexsort((np.arange(ROWS), -whole[:, i]))[:9].tolist()


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_held_out_queries_are_scored_by_the_directions_of_the_others(tmp_path, scorer):
    train, query = stores(tmp_path)
    groups = GROUPS | {"two": [3, 12]}
    rule = fit_behaviours(scorer, train, query, groups, CLEAN, [H, G])
    assert rule.held_out.keys() == {"many", "two"}  # one query has no others
    for name, scores in rule.held_out.items():
        expected = directly(train, query, scorer, groups[name], CLEAN)[1]
        np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=2e-5)


def test_clean_queries_are_scored_by_directions_that_are_contrasted_with_the_others(tmp_path):
    train, query = stores(tmp_path)
    clean = list(range(7, 14))
    rule = fit_behaviours(Adaptive(), train, query, GROUPS, clean, [H])
    assert {name: len(scores) for name, scores in rule.clean.items()} == dict.fromkeys(GROUPS, 7)
    q = torch.nn.functional.normalize(query.read(clean, [H])[H].double(), dim=1)
    for fold in range(FOLDS):
        others = sorted(set(clean) - set(clean[fold::FOLDS]))
        (one,) = fit_behaviours(Adaptive(), train, query, {"many": GROUPS["many"]}, others, [H]).fields.values()
        expected = rule.scorer.join(one(q)[None], rule.weight[:, :1])[fold::FOLDS, 0]
        np.testing.assert_allclose(rule.clean["many"][fold::FOLDS], expected, rtol=1e-5)
    assert not fit_behaviours(Adaptive(), train, query, GROUPS, clean[: FOLDS - 1], [H]).clean


def test_means_of_queries_do_not_depend_on_blocks(tmp_path):
    _, query = stores(tmp_path, world=2)
    rows = torch.nn.functional.normalize(query.read([1, 5, 9], [H])[H].double(), dim=1)
    (means,) = query_means(query, H, [[1, 5, 9]])
    torch.testing.assert_close(means.mean, rows.mean(0))
    assert means.scatter == pytest.approx(float((rows - rows.mean(0)).square().sum()))


def test_rows_without_a_signature_count_neither_as_queries_nor_as_training_rows(tmp_path):
    train, query = stores(tmp_path, zero=[3])
    with_it, without = query_means(query, H, [[1, 3, 5], [1, 5]])
    assert with_it.count == without.count == 2 and torch.equal(with_it.mean, without.mean)
    rule = fit_behaviours(Centroid(), train, query, {"one": [1]}, [], [H])
    others = [row for row in range(ROWS) if row != 3]
    expected = spectrum([torch.nn.functional.normalize(train.read(others, [H])[H].double(), dim=1)], WIDTH)
    torch.testing.assert_close(rule.fields[H].spectrum.mean, expected.mean)
    torch.testing.assert_close(rule.fields[H].spectrum.variance, expected.variance)
    assert (scored(train, query, Centroid(), groups={"none": [3]}) == 0).all()


def test_the_spectrum_of_many_rows_is_that_of_a_sample(tmp_path, monkeypatch):
    train, query = stores(tmp_path)

    def found():
        return fit_behaviours(Centroid(), train, query, {"one": [1]}, [], [H]).fields[H].spectrum

    monkeypatch.setattr(ranking, "SPECTRUM_ROWS", 60)
    monkeypatch.setattr(ranking, "ROWS_PER_DIMENSION", 10)
    some = np.sort(reservoir_sample(ROWS, 10 * WIDTH, seed=0))
    expected = spectrum([torch.nn.functional.normalize(train.read(some, [H])[H].double(), dim=1)], WIDTH)
    torch.testing.assert_close(found().mean, expected.mean)
    torch.testing.assert_close(found().variance, expected.variance)
    monkeypatch.setattr(ranking, "SPECTRUM_ROWS", ROWS)
    every = spectrum([torch.nn.functional.normalize(train.read(range(ROWS), [H])[H].double(), dim=1)], WIDTH)
    torch.testing.assert_close(found().variance, every.variance)
    assert not torch.allclose(every.variance, expected.variance)


def low_rank_rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    return torch.randn(300, 6, generator=generator, dtype=torch.float64) @ basis + 3


def test_the_low_rank_form_is_exact_for_rows_of_that_rank():
    rows = low_rank_rows()
    whole = spectrum([rows], 40)
    cut = spectrum(rows.split(37), 40, widest=10, rank=6)
    torch.testing.assert_close(cut.mean, whole.mean)
    torch.testing.assert_close(cut.variance, whole.variance[:6])
    assert cut.rest == pytest.approx(0, abs=1e-10)
    covariance = cut.axes @ cut.variance.diag() @ cut.axes.T
    torch.testing.assert_close(covariance, (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / 300)


def test_the_low_rank_form_keeps_the_trace_and_the_largest_variances():
    rows = low_rank_rows() + 0.05 * torch.randn(300, 40, generator=torch.Generator().manual_seed(1)).double()
    whole, cut = spectrum([rows], 40), spectrum(rows.split(50), 40, widest=10, rank=12)
    assert cut.trace == pytest.approx(whole.trace) and 0 < cut.rest < 0.01
    assert cut.square == pytest.approx(whole.square, rel=1e-3)
    torch.testing.assert_close(cut.variance[:6], whole.variance[:6], rtol=1e-3, atol=0)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_scores_by_the_low_rank_form(tmp_path, scorer, monkeypatch):
    """Rows of rank 6 with all axes and with six of 40 give the same scores, as do queries outside their span."""
    rows, asked = low_rank_rows(), low_rank_rows(1)[:5] + torch.randn(5, 40, dtype=torch.float64)
    for side, values in (("train", rows), ("query", asked)):
        write(tmp_path, {H: values.float()}, side, plan=batches(len(values)), dtype="float32")
        AttributionStore.finish(tmp_path, side, len(values))
    train, query = AttributionStore(tmp_path, "train"), AttributionStore(tmp_path, "query")
    args = dict(keys=[H], groups={"all": [0, 1, 2, 3, 4]}, clean=[])
    whole = scored(train, query, scorer, **args)
    monkeypatch.setattr(ranking, "spectrum", lambda blocks, width: spectrum(blocks, width, widest=10, rank=8))
    np.testing.assert_allclose(scored(train, query, scorer, **args), whole, rtol=1e-3, atol=1e-3)


def planted(seed, shift):
    """Rows of 64 numbers whose variances fall, 20 of 400 moved in a direction of low variance, and moved queries."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, 65) ** -0.5
    rows, asked = (torch.randn(n, 64, generator=generator) * scale for n in (400, 60))
    moved = torch.zeros(64)
    moved[30:34] = shift * scale[30:34]
    rows[:20] += moved
    return rows + 1, asked + moved + 1


def average_precision_of(folder, scorer, queries, fields):
    for side in (0, 1):
        values = {key: field[side] for key, field in fields.items()}
        name = ("train", "query")[side]
        write(folder, values, name, plan=batches(len(values[H])), dtype="float32")
        AttributionStore.finish(folder, name, len(values[H]))
    train, query = AttributionStore(folder, "train"), AttributionStore(folder, "query")
    s = scored(train, query, scorer, keys=list(fields), groups={"all": queries}, clean=[])[:, 0]
    ranks = np.sort(np.argsort(np.argsort(-s))[:20]) + 1
    return float((np.arange(1, 21) / ranks).mean())


def test_with_many_queries_a_direction_of_low_variance_is_found_beside_a_field_that_knows_nothing(tmp_path):
    other = Key("residual_stream", 2, "gradient")
    fields = {H: planted(0, 2.5), other: planted(1, 0.0)}
    found = {
        type(scorer).__name__: average_precision_of(tmp_path / type(scorer).__name__, scorer, list(range(30)), fields)
        for scorer in (Adaptive(), Centroid())
    }
    assert found["Adaptive"] > 0.95 and found["Adaptive"] > found["Centroid"] + 0.3


def test_a_scorer_of_ones_own_is_a_few_lines(tmp_path):
    class Opposite(BehaviourScorer):
        def directions(self, examples, rows):
            return [Direction(-examples.shift, 1.0)]

    train, query = stores(tmp_path)
    assert np.isfinite(scored(train, query, Opposite())).all()
