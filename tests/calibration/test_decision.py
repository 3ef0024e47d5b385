"""What stands out: valid p-values where nothing does, the planted rows where some do; the same on several ranks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rept.calibration.decision import benjamini_hochberg, decide, fewest, p_values, ranks_among, stepwise
from rept.calibration.references import References
from rept.calibration.statistics import DEPTH, Resemblance
from rept.errors import UsageError
from rept.ranking.topk import TopK
from rept.results.run_folder import RunFolder
from rept.run.pipeline import attribute, score
from rept.types import Key
from tests.helpers.terminal import print_to

KEYS = [Key("residual_stream", 1, name) for name in ("representation", "gradient")]
WIDTH, TOP = 24, 20


class Rows:
    """Training rows in memory, with what `Resemblance` asks of a store."""

    def __init__(self, fields):
        self.fields = fields
        self.attributed = np.arange(len(next(iter(fields.values()))))

    def evenly_spaced(self, most=4096):
        return self.attributed[:: -(-len(self.attributed) // most)]

    def read(self, rows, keys):
        return {key: self.fields[key][torch.as_tensor(rows)] for key in keys}


def samples(count, seed):
    """Two fields of samples around a common mean, as representations are."""
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(99))
    return {key: common + torch.randn(count, WIDTH, generator=generator) for key in KEYS}


def nobody(references):
    """Leaves no row out."""
    return lambda row: torch.zeros(len(row), references, dtype=torch.bool)


def decided(train, asked, known, *, rate=0.05, left_out=None, parts=1, block=64, top_k=TOP):
    """The decision on queries by references, the hits being the rows of the highest cosine in the first field."""
    references = References(known, left_out or nobody(len(known[KEYS[0]])), "made")
    store = Rows(train)
    gathered = [Resemblance(store, asked, references, top_k) for _ in range(parts)]
    best = TopK(len(asked[KEYS[0]]), top_k)
    for i, rows in enumerate(torch.arange(len(store.attributed)).split(block)):
        fields = store.read(rows, KEYS)
        gathered[i % parts](rows, fields)
        best.add(rows, torch.nn.functional.cosine_similarity(fields[KEYS[0]][:, None], asked[KEYS[0]], dim=-1))
    return decide([one.share() for one in gathered], best.hits(), rate, top_k), best.hits()


def plant(train, asked, rows, queries, field=0, seed=5):
    """Rows and queries that share something none of the others has, in one field."""
    shared = 6 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))
    train[KEYS[field]][rows] += shared
    asked[KEYS[field]][queries] += shared


def test_p_values_and_selection_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    known, asked = (torch.randn(3, 2, n, generator=generator) for n in (30, 12))  # (3 F R), (3 F k)
    asked = torch.cat([asked, known[..., :3]], dim=-1)

    def rank(everyone, one):
        """The best rank in a field whose cosines are in the highest quarter."""
        own = (everyone >= everyone[..., one, None]).sum(-1)
        return min(own[1:, f].min().item() if own[0, f] <= 31 / 4 else 32 for f in range(2))

    for i, found in enumerate(p_values(asked, known, ranks_among(known))[0].tolist()):
        everyone = torch.cat([asked[..., i, None], known], dim=-1)
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


def test_every_step_leaves_out_one_more():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(30, generator=generator).sort(descending=True).values
    row, removed = (torch.randperm(40, generator=generator)[:30] for _ in range(2))
    found = stepwise(row, score, removed)
    assert len(found) == 31 and stepwise(row, score, removed[:0]).tolist() == found[:1].tolist()
    for step in range(31):
        left = [s for r, s in zip(row.tolist(), score.tolist(), strict=True) if r not in removed[:step].tolist()]
        assert (
            found[step] == pytest.approx(sum(left[:DEPTH]) / len(left[:DEPTH])) if left else found[step] == -torch.inf
        )


@pytest.mark.parametrize("share", [0, 0.12, 0.3])
def test_p_values_are_valid_where_queries_are_like_references(share):
    p, runs = [], 16
    for seed in range(runs):
        mask = torch.rand(200, 99, generator=torch.Generator().manual_seed(seed)) < share
        fields = samples(200, 3 * seed), samples(40, 3 * seed + 1), samples(99, 3 * seed + 2)
        found, _ = decided(*fields, left_out=lambda row, mask=mask: mask[row])
        assert found.left_out == pytest.approx(share, abs=0.02)
        p.append(found.query)
    for level in (0.05, 0.1, 0.2):
        assert (torch.cat(p) <= level).double().mean() <= level + 0.02


def test_no_query_is_selected_where_none_stands_out():
    found = [decided(samples(200, 3 * s), samples(40, 3 * s + 1), samples(99, 3 * s + 2))[0] for s in range(20)]
    assert sum(one.flagged.any().item() for one in found) <= 4  # each run flags anything with chance 0.05


@pytest.mark.parametrize("field", [0, 1])
def test_planted_rows_stand_out_and_are_the_ones_flagged(field):
    """Whichever field tells: the hits are ranked by the first."""
    train, asked, known = samples(300, 0), samples(10, 1), samples(199, 2)
    plant(train, asked, slice(50, 62), slice(0, 5), field)
    found, hits = decided(train, asked, known, top_k=300)
    assert found.flagged[:5].any(1).all() and not found.flagged[5:].any()
    rows = [row for i in range(5) for row in hits.row[i][found.flagged[i]].tolist()]
    assert len(rows) > 30 and sum(row in range(50, 62) for row in rows) >= 0.95 * len(rows)
    assert (found.query[:5] <= 4 * found.floor).all() and found.floor == 1 / 200, "first in one of two fields"
    assert torch.equal(found.hit.amin(1), found.query), "what stands out furthest has its query's p-value"


def test_a_query_unlike_all_others_does_not_stand_out():
    train, asked, known = samples(300, 0), samples(10, 1), samples(199, 2)
    for key in KEYS:
        asked[key][:5] = 40 * torch.eye(WIDTH)[:5]  # far from everything, so also from the references
    assert not decided(train, asked, known)[0].flagged.any()


def test_a_hub_that_everybody_finds_does_not_stand_out():
    train, asked, known = samples(300, 0), samples(10, 1), samples(199, 2)
    plant(train, asked, slice(7, 20), slice(0, 10))
    plant(train, known, slice(0, 0), slice(0, 199))
    assert not decided(train, asked, known)[0].flagged.any()


def test_rows_left_out_are_no_part_of_the_background():
    train, asked, known = samples(300, 0), samples(3, 1), samples(199, 2)
    plant(train, asked, slice(50, 62), slice(0, 3))
    plant(train, known, slice(0, 0), slice(0, 60))  # 30 % of the references are culprits themselves
    mask = torch.zeros(300, 199, dtype=torch.bool)
    mask[50:62, :60] = True
    assert not decided(train, asked, known)[0].flagged.any()
    assert decided(train, asked, known, left_out=lambda row: mask[row])[0].flagged.any(1).all()


def test_a_reference_without_any_row_is_not_counted():
    train, asked, known = samples(40, 0), samples(4, 1), samples(20, 2)
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[:, :3] = True
    assert decided(train, asked, known, left_out=lambda row: mask[row])[0].references == 17


def test_the_scale_of_a_field_does_not_matter():
    fields = [samples(300, 0), samples(10, 1), samples(50, 2)]
    plant(fields[0], fields[1], slice(50, 62), slice(0, 5))
    small = [{key: 1e-25 * block if key == KEYS[1] else block for key, block in one.items()} for one in fields]
    assert torch.equal(decided(*small)[0].hit, decided(*fields)[0].hit)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_processes_together_decide_as_one(parts):
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


def test_clean_queries_of_another_run_are_references_beside_drawn_rows(run, material, tmp_path):
    again = score([str(run.folder.path), f"calibration.references={run.folder.path}", f"out={tmp_path / 'again'}"])
    told = again.metrics["calibration"]
    assert told["references"] == told["queries"] + run.metrics["calibration"]["references"]
    assert told["source"] == f"queries of {run.folder.path}; {run.metrics['calibration']['source']}"
    assert set(told["p_values"]) == {str(line["query"]) for line in run.queries if run.hits(line["query"])}
    alone = [f"calibration.references={run.folder.path}", "calibration.count=0", f"out={tmp_path / 'alone'}"]
    told = score([str(run.folder.path), *alone]).metrics["calibration"]
    assert (told["references"], told["source"]) == (told["queries"], f"queries of {run.folder.path}")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("calibration.rate=0", "calibration.rate to be above 0 and below 1, but got 0.0"),
        ("calibration.count=-1", "calibration.count to be at least 0, but got -1"),
        ("calibration.count=0", "calibration.count to be at least 1 where calibration.references names no run"),
        ("calibration.references=nowhere", "Expected nowhere to be a run folder"),
    ],
)
def test_settings_out_of_range_are_told_before_anything_runs(setting, told, material, tmp_path):
    with pytest.raises(UsageError, match=told):
        attribute(material.config(tmp_path / "run", setting), show_result=False)


@pytest.mark.parametrize("experiment", ["bm25", "length"])
def test_signatures_without_direction_are_not_calibrated(experiment, material, tmp_path):
    with pytest.raises(UsageError, match="cannot be calibrated"):
        attribute(
            material.config(tmp_path / "run", f"experiment={experiment}", "calibration.rate=0.1"), show_result=False
        )


def test_references_traced_in_another_way_are_refused(run, material, tmp_path):
    other = attribute(material.config(tmp_path / "other", "layers.layers=[1]", "tokens.hits=0"), show_result=False)
    with pytest.raises(UsageError, match="they differ in layers"):
        score([str(run.folder.path), f"calibration.references={other.folder.path}", f"out={tmp_path / 'out'}"])
    assert OmegaConf.select(RunFolder(run.folder.path).open_existing(), "calibration.references") is None
