"""The statistics of a calibration compared with loops written from their definitions."""

from __future__ import annotations

import pytest
import torch

from rept.calibration.references import References
from rept.calibration.statistics import (
    MIN_REFERENCES,
    QUANTITIES,
    TOP_ROWS,
    StatisticsCollector,
    mean_unit_rows,
    standings,
)
from tests.calibration.test_decision import KEYS, Rows, excludes_none, samples


def test_standings_are_those_of_their_definition():
    generator = torch.Generator().manual_seed(0)
    queries, known = torch.randn(12, 4, generator=generator), torch.randn(12, 29, generator=generator)
    out = torch.rand(12, 29, generator=generator) < 0.3
    out[3] = True  # compared with none
    out[4] = torch.arange(29) > MIN_REFERENCES - 2  # with one too few
    out[5] = torch.arange(29) > MIN_REFERENCES - 1  # with just enough
    (standing, excess), (own_standing, own_excess) = standings(queries, known, out)
    for i in range(12):
        compared = known[i][~out[i]]
        if len(compared) < MIN_REFERENCES:
            assert not standing[i].any() and not excess[i].any()
            continue
        deviation = compared.std(correction=0)
        torch.testing.assert_close(standing[i], (queries[i] - compared.mean()) / deviation)
        torch.testing.assert_close(excess[i], (queries[i] - compared.max()) / deviation)
        for r in (~out[i]).nonzero()[:, 0].tolist():
            others = torch.cat([known[i, :r], known[i, r + 1 :]])[~torch.cat([out[i, :r], out[i, r + 1 :]])]
            deviation = others.std(correction=0)
            torch.testing.assert_close(own_standing[i, r], (known[i, r] - others.mean()) / deviation)
            torch.testing.assert_close(own_excess[i, r], (known[i, r] - others.max()) / deviation)


def test_the_top_rows_are_the_highest_of_all_blocks():
    train, queries, known = samples(150, 0), samples(3, 1), samples(37, 2)
    mask = torch.rand(150, 37, generator=torch.Generator().manual_seed(3)) < 0.2
    references, store = References(known, lambda row: mask[row], "made"), Rows(train)
    collector = StatisticsCollector(store, queries, references, top_k=10)
    for rows in torch.arange(150).split(40):
        collector(rows, store.read(rows, KEYS))
    for key in KEYS:
        found = collector.collected().top[key.field]
        centre = torch.nn.functional.normalize(train[key], dim=1).mean(0)

        def cosines(other, key=key, centre=centre):
            x, y = (torch.nn.functional.normalize(block, dim=1) - centre for block in (train[key], other[key]))
            return torch.nn.functional.cosine_similarity(x[:, None], y, dim=-1)

        near, own = cosines(queries), cosines(known)
        against, among = standings(near, own, mask)
        for name, ours, theirs in zip(QUANTITIES, (near, *against), (own, *among), strict=True):
            for hits, scores, k in (
                (found[name].query, ours, 10 + TOP_ROWS),
                (found[name].reference, theirs.masked_fill(mask, -torch.inf), TOP_ROWS),
            ):
                highest = scores.topk(k, dim=0)
                torch.testing.assert_close(hits.score, highest.values.T, rtol=1e-4, atol=1e-4)
                assert torch.equal(hits.row, highest.indices.T)


def test_sites_and_layers_of_a_field_are_averaged():
    fields = [samples(60, 0), samples(3, 1), samples(37, 2)]
    one_field = [key._replace(field="one", layer=i) for i, key in enumerate(KEYS)]
    shared = [dict(zip(one_field, side.values(), strict=True)) for side in fields]
    found = []
    for train, queries, known in (fields, shared):
        store = Rows(train)
        collector = StatisticsCollector(store, queries, References(known, excludes_none(37), "made"), top_k=55)
        collector(torch.arange(60), train)
        found.append(collector.collected().top)
    apart, (together,) = found[0].values(), found[1].values()
    hits = [one["cosine"].query for one in (*apart, together)]
    near = [torch.zeros(3, 60).scatter(1, one.row, one.score) for one in hits]
    torch.testing.assert_close((near[0] + near[1]) / 2, near[2])


def test_zero_rows_are_similar_to_nothing():
    train, queries, known = samples(40, 0), samples(2, 1), samples(5, 2)
    train[KEYS[0]][7] = 0
    queries[KEYS[0]][1] = 0
    store = Rows(train)
    collector = StatisticsCollector(store, queries, References(known, excludes_none(5), "made"), 40)
    collector(torch.arange(40), train)
    near = collector.collected().top[KEYS[0].field]["cosine"].query
    assert near.score[0][near.row[0] == 7] == 0 and (near.score[1] == 0).all()


def test_the_mean_is_that_of_evenly_spaced_rows():
    train = samples(2 * 4096 + 1, 0)  # of more than 4,096 rows, every third is read
    found = mean_unit_rows(Rows(train), KEYS)
    for key in KEYS:
        unit = torch.nn.functional.normalize(train[key][::3], dim=1)
        torch.testing.assert_close(found[key], unit.mean(0, keepdim=True))
        assert found[key].norm() == pytest.approx(unit.mean(0).norm().item())
