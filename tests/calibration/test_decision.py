"""Decisions of a calibration: valid p-values where nothing stands out, planted rows where some do, on any ranks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from rept.calibration.decision import benjamini_hochberg, decide, fewest, p_values, ranks_among, stepwise
from rept.calibration.references import References
from rept.calibration.statistics import QUANTITIES, TOP_ROWS, PartialStatistics, StatisticsCollector, TopRows
from rept.errors import UsageError
from rept.ranking.topk import Hits, TopK
from rept.results.run_folder import RunFolder
from rept.run.pipeline import attribute
from rept.run.rescore import score
from rept.types import Key
from tests.helpers.terminal import print_to

KEYS = [Key("residual_stream", 1, name) for name in ("representation", "gradient")]
WIDTH, TOP = 24, 20


class Rows:
    """Training rows in memory, with the part of a store that `StatisticsCollector` uses."""

    def __init__(self, fields):
        self.fields = fields
        self.attributed = np.arange(len(next(iter(fields.values()))))

    def evenly_spaced(self, most=4096):
        return self.attributed[:: -(-len(self.attributed) // most)]

    def read(self, rows, keys, together=False):
        return {key: self.fields[key][torch.as_tensor(rows)] for key in keys}


def samples(count, seed):
    """Two fields of samples around a common mean, as representations are."""
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(99))
    return {key: common + torch.randn(count, WIDTH, generator=generator) for key in KEYS}


def excludes_none(references):
    """Compares every row with every reference."""
    return lambda row: torch.zeros(len(row), references, dtype=torch.bool)


def decided(train, queries, known, *, rate=0.05, excluded=None, parts=1, block=64, top_k=TOP):
    """The decision on queries by references; the hits are the rows of the highest cosine in the first field."""
    references = References(known, excluded or excludes_none(len(known[KEYS[0]])), "made")
    store = Rows(train)
    collectors = [StatisticsCollector(store, queries, references, top_k) for _ in range(parts)]
    best = TopK(len(queries[KEYS[0]]), top_k)
    for i, rows in enumerate(torch.arange(len(store.attributed)).split(block)):
        fields = store.read(rows, KEYS)
        collectors[i % parts](rows, fields)
        best.add(rows, torch.nn.functional.cosine_similarity(fields[KEYS[0]][:, None], queries[KEYS[0]], dim=-1))
    return decide([one.collected() for one in collectors], best.hits(), rate, top_k), best.hits()


def plant(train, queries, rows, numbers, field=0, seed=5):
    """Adds to rows and queries something in one field that none of the others has."""
    shared = 6 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))
    train[KEYS[field]][rows] += shared
    queries[KEYS[field]][numbers] += shared


def test_p_values_and_selection_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    known, queries = (torch.randn(3, 2, n, generator=generator) for n in (30, 12))  # (3 F R), (3 F k)
    queries = torch.cat([queries, known[..., :3]], dim=-1)

    def rank(everyone, one):
        """The best rank in a field whose cosines are in the highest quarter."""
        own = (everyone >= everyone[..., one, None]).sum(-1)
        return min(own[1:, f].min().item() if own[0, f] <= 31 / 4 else 32 for f in range(2))

    for i, found in enumerate(p_values(queries, known, ranks_among(known))[0].tolist()):
        everyone = torch.cat([queries[..., i, None], known], dim=-1)
        ranks = [rank(everyone, one) for one in range(31)]
        assert found == pytest.approx(sum(other <= ranks[0] for other in ranks) / 31)
    p = torch.tensor([0.001, 0.011, 0.02, 0.04, 0.5])
    assert benjamini_hochberg(p, 0.05) == pytest.approx(0.04)
    assert benjamini_hochberg(p, 0.03) == pytest.approx(0.011)
    assert benjamini_hochberg(p, 0.001) == -1


@pytest.mark.parametrize(
    ("queries", "references", "rate"), [(1, 99, 0.01), (10, 199, 0.05), (20, 399, 0.05), (40, 399, 0.1)]
)
def test_a_p_value_on_the_line_is_selected(queries, references, rate):
    p = torch.ones(queries, dtype=torch.float64)
    p[0] = 1 / (1 + references)
    assert fewest(queries, references, rate) == 1 and benjamini_hochberg(p, rate) == p[0]


def test_every_step_removes_one_more():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(30, generator=generator).sort(descending=True).values
    row, removed = (torch.randperm(40, generator=generator)[:30] for _ in range(2))
    found = stepwise(row, score, removed)
    assert len(found) == 31 and stepwise(row, score, removed[:0]).tolist() == found[:1].tolist()
    for step in range(31):
        left = [s for r, s in zip(row.tolist(), score.tolist(), strict=True) if r not in removed[:step].tolist()]
        assert (
            found[step] == pytest.approx(sum(left[:TOP_ROWS]) / len(left[:TOP_ROWS]))
            if left
            else found[step] == -torch.inf
        )


def by_definition(top, rows, compared, best):
    """p-values of queries and hits, one query, reference and hit at a time.

    Args:
        top: by quantity and field, (Q m) rows and scores of the queries, and (R m) scores of the references.
    """
    fields, references = range(len(top[0])), [r for r, count in enumerate(compared) if count]

    def mean(scores, depth):
        finite = [score for score in scores[:depth] if score > -np.inf]
        return sum(finite) / len(finite) if finite else -np.inf

    depth = [max(1, TOP_ROWS * count // rows) for count in compared]
    known = [[{r: mean(side[2][r], depth[r]) for r in references} for side in one] for one in top]

    def best_rank(own, others):
        """The best rank of a statistic (3 F) among others, and its quantity and field."""
        rank = [[1 + sum(other[i][f] >= own[i][f] for other in others) for f in fields] for i in range(3)]
        last = len(others) + 2
        near = [rank[0][f] <= (len(others) + 1) / 4 for f in fields]
        return min((rank[i][f] if near[f] else last, i, f) for i in (1, 2) for f in fields)

    def p_value(own):
        everyone = {r: [[known[i][f][r] for f in fields] for i in range(3)] for r in references}
        rank, name, field = best_rank(own, list(everyone.values()))
        ranks = [
            best_rank(everyone[r], [own, *(everyone[other] for other in references if other != r)])[0]
            for r in references
        ]
        return (1 + sum(other <= rank for other in ranks)) / (1 + len(references)), name, field

    found = []
    for query, hits in enumerate(best):

        def statistics(removed, query=query):
            return [
                [
                    mean([s for r, s in zip(side[0][query], side[1][query], strict=True) if r not in removed], TOP_ROWS)
                    for side in one
                ]
                for one in top
            ]

        p, name, field = p_value(statistics([]))
        ordered = [row for row in top[name][field][0][query] if row in hits]
        of_hit, highest = dict.fromkeys(hits, 1.0), 0.0
        for i, row in enumerate(ordered):
            highest = max(highest, p_value(statistics(ordered[:i]))[0])
            of_hit[row] = highest
        found.append((p, [of_hit[row] for row in hits]))
    return found


@pytest.mark.parametrize("rows", [40, 7, 3])
@pytest.mark.parametrize("seed", range(6))
def test_decisions_are_those_of_a_loop_over_queries_references_and_hits(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    queries, references, top_k = 6, 24, min(8, rows)
    kept = min(rows, top_k + TOP_ROWS)
    excluded = torch.rand(rows, references, generator=generator) < 0.9 * torch.rand(references, generator=generator)
    excluded[:, 3], excluded[1:, 5], excluded[0] = True, True, torch.arange(references) == 3  # none, one, all rows
    compared = (~excluded).sum(0)
    top, plain = {"one": {}, "two": {}}, []
    for name in QUANTITIES:
        plain.append([])
        for field in top:
            ours, theirs = (torch.randn(rows, n, generator=generator) for n in (queries, references))
            ours += 0.2 * torch.arange(queries) + 2 * (name == "cosine")  # near
            ours[:6] += torch.linspace(3, 0, 6)[:rows, None]  # the same rows stand out in all
            ours[:, -1] += 20 if name == "cosine" else -20  # near, but stands out least
            theirs = theirs.masked_fill(excluded, -torch.inf)
            sides = []
            for block, width in ((ours, kept), (theirs, TOP_ROWS)):  # rounded, so that some means are equal
                score, row = ((4 * block.T).round() / 4).sort(dim=1, descending=True, stable=True)
                sides.append(Hits(row[:, :width], score[:, :width]))
            top[field][name] = TopRows(*sides)
            plain[-1].append([sides[0].row.tolist(), sides[0].score.tolist(), sides[1].score.tolist()])
    best = []
    for query in range(queries):  # rows at the top in one of the quantities and fields, then any
        near_top = torch.tensor(plain[1 + query % 2][query // 2 % 2][0][query][:7])
        likely = near_top[torch.randperm(len(near_top), generator=generator)[: top_k - 2]].tolist()
        best.append(list(dict.fromkeys([*likely, *torch.randperm(rows, generator=generator).tolist()]))[:top_k])
    hits = Hits(torch.tensor(best), torch.zeros(queries, top_k))
    decision = decide([PartialStatistics(top, rows, compared)], hits, 0.3, top_k)
    expected = by_definition(plain, rows, compared.tolist(), best)
    assert decision.query.tolist() == pytest.approx([p for p, _ in expected])
    torch.testing.assert_close(decision.hit, torch.tensor([p for _, p in expected], dtype=torch.float64))
    assert decision.references == references - 1 and len(decision.hit.unique()) >= (4 if rows > 7 else 2)


@pytest.mark.parametrize("share", [0, 0.12, 0.3])
def test_p_values_are_valid_where_queries_are_like_references(share):
    p, runs = [], 16
    for seed in range(runs):
        mask = torch.rand(200, 99, generator=torch.Generator().manual_seed(seed)) < share
        fields = samples(200, 3 * seed), samples(40, 3 * seed + 1), samples(99, 3 * seed + 2)
        found, _ = decided(*fields, excluded=lambda row, mask=mask: mask[row])
        assert found.left_out == pytest.approx(share, abs=0.02)
        p.append(found.query)
    for level in (0.05, 0.1, 0.2):
        assert (torch.cat(p) <= level).double().mean() <= level + 0.02


def test_no_query_is_selected_where_none_stands_out():
    found = [decided(samples(200, 3 * s), samples(40, 3 * s + 1), samples(99, 3 * s + 2))[0] for s in range(20)]
    assert sum(one.flagged.any().item() for one in found) <= 4  # each run flags anything with chance 0.05


@pytest.mark.parametrize("field", [0, 1])
def test_planted_rows_stand_out_and_are_the_ones_flagged(field):
    """In either field; the hits are ranked by the first."""
    train, queries, known = samples(300, 0), samples(10, 1), samples(199, 2)
    plant(train, queries, slice(50, 62), slice(0, 5), field)
    found, hits = decided(train, queries, known, top_k=300)
    assert found.flagged[:5].any(1).all() and not found.flagged[5:].any()
    rows = [row for i in range(5) for row in hits.row[i][found.flagged[i]].tolist()]
    assert len(rows) > 30 and sum(row in range(50, 62) for row in rows) >= 0.95 * len(rows)
    assert (found.query[:5] <= 4 * found.floor).all() and found.floor == 1 / 200, "first in one of two fields"
    assert torch.equal(found.hit.amin(1), found.query), "what stands out furthest has its query's p-value"


def test_a_query_unlike_all_others_does_not_stand_out():
    train, queries, known = samples(300, 0), samples(10, 1), samples(199, 2)
    for key in KEYS:
        queries[key][:5] = 40 * torch.eye(WIDTH)[:5]  # far from everything, so also from the references
    assert not decided(train, queries, known)[0].flagged.any()


def test_a_hub_that_is_near_all_queries_does_not_stand_out():
    train, queries, known = samples(300, 0), samples(10, 1), samples(199, 2)
    plant(train, queries, slice(7, 20), slice(0, 10))
    plant(train, known, slice(0, 0), slice(0, 199))
    assert not decided(train, queries, known)[0].flagged.any()


def test_excluded_rows_are_not_part_of_the_background():
    train, queries, known = samples(300, 0), samples(3, 1), samples(199, 2)
    plant(train, queries, slice(50, 62), slice(0, 3))
    plant(train, known, slice(0, 0), slice(0, 60))  # 30 % of the references are culprits themselves
    mask = torch.zeros(300, 199, dtype=torch.bool)
    mask[50:62, :60] = True
    assert not decided(train, queries, known)[0].flagged.any()
    assert decided(train, queries, known, excluded=lambda row: mask[row])[0].flagged.any(1).all()


def test_a_reference_without_any_row_is_not_counted():
    train, queries, known = samples(40, 0), samples(4, 1), samples(20, 2)
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[:, :3] = True
    assert decided(train, queries, known, excluded=lambda row: mask[row])[0].references == 17


def test_the_scale_of_a_field_does_not_matter():
    fields = [samples(300, 0), samples(10, 1), samples(50, 2)]
    plant(fields[0], fields[1], slice(50, 62), slice(0, 5))
    small = [{key: 1e-25 * block if key == KEYS[1] else block for key, block in one.items()} for one in fields]
    assert torch.equal(decided(*small)[0].hit, decided(*fields)[0].hit)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_several_processes_decide_as_one(parts):
    fields = samples(300, 0), samples(10, 1), samples(50, 2)
    whole, shared = decided(*fields, rate=0.5)[0], decided(*fields, rate=0.5, parts=parts)[0]
    for name in ("query", "hit", "flagged"):
        assert torch.equal(getattr(whole, name), getattr(shared, name))


@pytest.mark.parametrize(("queries", "references"), [(1, 400), (100, 400), (40, 39), (7, 1000)])
def test_the_fewest_that_can_stand_out_together(queries, references):
    least = fewest(queries, references, 0.05)
    for together in (least - 1, least):
        p = torch.ones(queries, dtype=torch.float64)
        p[:together] = 1 / (1 + references)
        assert (benjamini_hochberg(p, 0.05) > 0) == (0 < together <= queries and together >= least)


@pytest.fixture(scope="module")
def run(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    return attribute(material.config(folder, "tokens.hits=0", "calibration.rate=0.3"), show_result=False)


def test_a_run_is_calibrated_with_it_or_after_it(run, material, tmp_path, monkeypatch):
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    plain = attribute(material.config(tmp_path / "plain", "tokens.hits=0"), show_result=False)
    assert plain.hits(0)[0].p_value is None and "calibration" not in plain.metrics
    later = score([str(tmp_path / "plain"), "calibration.rate=0.3", f"out={tmp_path / 'later'}"])
    for query in (line["query"] for line in run.queries):
        assert later.hits(query) == run.hits(query)
        known = plain.hits(query)
        assert [(hit.row, hit.score) for hit in run.hits(query)] == [(hit.row, hit.score) for hit in known]
        p = np.array([hit.p_value for hit in run.hits(query)])
        assert len(p) == 0 or (p.min() >= run.metrics["calibration"]["floor"] and p.max() <= 1)
    assert "stands out (*) for" in stream.getvalue()
    flags = [[hit.flagged for hit in run.hits(line["query"])] for line in run.queries]
    assert run.metrics["calibration"]["stand_out"] == sum(map(any, flags))
    silent = sum(bool(flagged) and not any(flagged) for flagged in flags[:3])
    assert stream.getvalue().count("no training sample stands out") == silent


def test_clean_queries_of_another_run_are_references_beside_drawn_rows(run, material, tmp_path, capsys):
    again = score([str(run.folder.path), f"calibration.references={run.folder.path}", f"out={tmp_path / 'again'}"])
    found = again.metrics["calibration"]
    assert found["references"] == found["queries"] + run.metrics["calibration"]["references"]
    assert found["source"] == f"queries of {run.folder.path}; {run.metrics['calibration']['source']}"
    assert set(found["p_values"]) == {str(line["query"]) for line in run.queries if run.hits(line["query"])}
    alone = [f"calibration.references={run.folder.path}", "calibration.count=0", f"out={tmp_path / 'alone'}"]
    found = score([str(run.folder.path), *alone]).metrics["calibration"]
    assert (found["references"], found["source"]) == (found["queries"], f"queries of {run.folder.path}")
    assert capsys.readouterr().out.count("a query hardly stands out from itself: name a run with clean queries") == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("calibration.rate=0", "calibration.rate to be above 0 and below 1, but got 0.0"),
        ("calibration.count=-1", "calibration.count to be at least 0, but got -1"),
        ("calibration.count=0", "calibration.count to be at least 1 where calibration.references names no run"),
        ("calibration.references=nowhere", "Expected nowhere to be a run folder"),
    ],
)
def test_settings_out_of_range_are_reported_before_anything_runs(setting, message, material, tmp_path):
    with pytest.raises(UsageError, match=message):
        attribute(material.config(tmp_path / "run", setting), show_result=False)


@pytest.mark.parametrize("experiment", ["bm25", "length"])
def test_signatures_that_are_not_directions_are_refused_before_the_extraction(experiment, material, tmp_path):
    config = material.config(tmp_path / "run", f"experiment={experiment}", "calibration.rate=0.1")
    with pytest.raises(UsageError, match="cannot be calibrated"):
        attribute(config, show_result=False)
    assert not (tmp_path / "run" / "store").exists()


def test_signatures_that_are_not_directions_are_not_calibrated_later_and_behaviours_are_not_compared(
    material, tmp_path
):
    trace = attribute(material.config(tmp_path / "run", "experiment=length"), show_result=False)
    assert trace.hits(0) and not trace.behaviours
    with pytest.raises(UsageError, match="cannot be calibrated"):
        score([str(tmp_path / "run"), "calibration.rate=0.1", f"out={tmp_path / 'again'}"])
    assert not score([str(tmp_path / "run"), f"out={tmp_path / 'again'}"]).behaviours


def test_references_traced_in_another_way_are_refused(run, material, tmp_path):
    other = attribute(material.config(tmp_path / "other", "layers.layers=[1]", "tokens.hits=0"), show_result=False)
    with pytest.raises(UsageError, match="they differ in layers"):
        score([str(run.folder.path), f"calibration.references={other.folder.path}", f"out={tmp_path / 'out'}"])
    assert RunFolder(run.folder.path).open_existing().calibration.references is None
