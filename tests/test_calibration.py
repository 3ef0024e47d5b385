"""What stands out: valid p-values where nothing does, the planted rows where some do; the same on several ranks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from rept import console as shown
from rept.calibration import Background, benjamini_hochberg, decide, fewest, held_against, p_values, statistics
from rept.errors import UsageError
from rept.pipeline import attribute, score
from rept.run_folder import RunFolder
from rept.topk import TopK


def nobody(references):
    return lambda row: torch.zeros(len(row), references, dtype=torch.bool)


def background(scores, left_out=None, parts=1, block=64, top_k=20):
    """Shares of so many processes, from reference scores (N R)."""
    gathered = [Background(scores.shape[1], left_out or nobody(scores.shape[1]), top_k) for _ in range(parts)]
    for i, rows in enumerate(torch.arange(len(scores)).split(block)):
        gathered[i % parts](rows, scores[rows])
    return [one.share() for one in gathered]


def best(scores, k=20):
    top = TopK(scores.shape[1], k)
    top.add(torch.arange(len(scores)), scores)
    return top.hits()


def scores(rows, queries, seed):
    """Rows differ in level and spread, as hubs do."""
    generator = torch.Generator().manual_seed(seed)
    level, spread = (
        torch.randn(rows, 1, generator=torch.Generator().manual_seed(99)),
        torch.linspace(0.5, 2, rows)[:, None],
    )
    return level + spread * torch.randn(rows, queries, generator=generator)


def test_p_values_and_selection_are_those_of_their_definitions():
    known = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    asked = torch.cat([torch.randn(12, 2, generator=torch.Generator().manual_seed(1)), known[:3]])
    among = (known[None] >= known[:, None]).sum(1)
    for found, one in zip(p_values(asked, known, among).tolist(), asked, strict=True):
        pool = torch.cat([one[None], known])
        rank = (pool[None] >= pool[:, None]).sum(1).amin(1)
        assert found == pytest.approx((rank <= rank[0]).sum().item() / 31)
    p = torch.tensor([0.001, 0.011, 0.02, 0.04, 0.5])
    assert benjamini_hochberg(p, 0.05) == pytest.approx(0.04)
    assert benjamini_hochberg(p, 0.03) == pytest.approx(0.011)
    assert benjamini_hochberg(p, 0.001) == -1


def test_p_values_are_uniform_where_queries_are_like_references():
    found = [
        decide(background(scores(200, 99, 2 * seed)), best(scores(200, 40, 2 * seed + 1)), 0.05) for seed in range(20)
    ]
    p = torch.cat([one.query for one in found])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).double().mean() == pytest.approx(level, abs=0.04)
    assert sum(one.flagged.any().item() for one in found) <= 4  # each run flags anything with chance 0.05


def test_planted_rows_stand_out_and_are_the_ones_flagged():
    asked = scores(300, 10, 1)
    asked[50:62, :5] += 12  # twelve culprits of five queries
    found, hits = decide(background(scores(300, 199, 0)), best(asked), 0.05), best(asked)
    assert found.flagged[:5].any(1).all() and not found.flagged[5:].any()
    innocent = sum(row not in range(50, 62) for row in hits.row[:5][found.flagged[:5]].tolist())
    assert innocent <= 0.05 * found.flagged.sum()
    assert (found.query[:5] == found.floor).all() and found.floor == 1 / 200
    assert torch.equal(found.hit.amin(1), found.query), "the best hit has its query's p-value"


def test_a_reference_is_no_part_of_its_own_background():
    known = scores(60, 30, 0)
    share = background(known)[0]
    found, z = held_against(share.moments, share.hits, own=True)
    assert (found > 0).any(1).sum() > 20
    for r in range(30):
        others = torch.cat([known[:, :r], known[:, r + 1 :]], dim=1).double()
        row = share.hits.row[r]
        above = (known[row, r] - others.amax(1)[row]) / others.std(1, correction=0)[row]
        torch.testing.assert_close(found[r], above.clamp(min=0))
        deviation, mean = torch.std_mean(others, dim=1, correction=0)
        torch.testing.assert_close(z[r], (known[row, r] - mean[row]) / deviation[row])


def test_statistics_are_those_of_what_is_left():
    e, z = torch.rand(3, 30).sub(0.5).clamp(min=0).double(), torch.randn(3, 30).double()
    found, order = statistics(e, z)
    for query in range(3):
        ordered = sorted(range(30), key=lambda i: (-e[query, i].item(), -z[query, i].item()))
        assert order[query].tolist() == ordered
        for step in (0, 5, 25):
            left = ordered[step:]
            highest = sorted(z[query, left].tolist(), reverse=True)[:10]
            expected = [e[query, left].sum().item(), sum(highest) / len(highest)]
            assert found[query, step].tolist() == pytest.approx(expected)


def test_a_query_is_held_against_all_references():
    known, asked = scores(60, 30, 0), scores(60, 4, 1)
    found, hits = held_against(background(known)[0].moments, best(asked))[0], best(asked)
    above = ((asked - known.amax(1, keepdim=True)) / known.std(1, correction=0, keepdim=True)).clamp(min=0).double()
    torch.testing.assert_close(found, above.gather(0, hits.row.T).T, rtol=1e-5, atol=1e-6)
    assert 0 < (found > 0).sum() < found.numel()


def test_few_culprits_that_stand_out_far_and_many_that_do_a_little_are_both_found():
    asked = scores(300, 10, 1)
    asked[50:53, 0] += 15
    asked[100:200, 1] += 4
    found = decide(background(scores(300, 199, 0)), best(asked, 100), 0.2).flagged
    assert found[:2].any(1).all() and not found[2:].any()


def test_a_hub_that_everybody_finds_does_not_stand_out():
    known, asked = scores(300, 199, 0), scores(300, 10, 1)
    known[7:20] += 30
    asked[7:20] += 30
    assert not decide(background(known), best(asked), 0.05).flagged.any()


def test_rows_left_out_are_no_part_of_the_background():
    known, asked = scores(300, 199, 0), scores(300, 3, 1)
    known[50:62, :60] += 12  # 30 % of the references are culprits themselves
    asked[50:62] += 12
    mask = torch.zeros(300, 199, dtype=torch.bool)
    mask[50:62, :60] = True
    assert not decide(background(known), best(asked), 0.05).flagged.any()
    assert decide(background(known, lambda row: mask[row]), best(asked), 0.05).flagged.any(1).all()


def test_a_reference_without_any_row_is_not_counted():
    known = scores(40, 20, 0)
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[:, :3] = True
    assert decide(background(known, lambda row: mask[row]), best(scores(40, 4, 1)), 0.05).references == 17


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_processes_together_decide_as_one(parts):
    known, hits = scores(300, 50, 0), best(scores(300, 10, 1))
    whole, shared = decide(background(known), hits, 0.5), decide(background(known, parts=parts), hits, 0.5)
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
    monkeypatch.setattr(shown, "console", Console(file=stream, width=120, highlight=False))
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


def test_references_traced_in_another_way_are_refused(run, material, tmp_path):
    other = attribute(material.config(tmp_path / "other", "layers.layers=[1]", "tokens.hits=0"), show_result=False)
    with pytest.raises(UsageError, match="they differ in layers"):
        score([str(run.folder.path), f"calibration.references={other.folder.path}", f"out={tmp_path / 'out'}"])
    assert OmegaConf.select(RunFolder(run.folder.path).open_existing(), "calibration.references") is None
