"""The sanity checks of a comparison: each against a slow count, and for methods whose result is known."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from rept.commands.compare import run
from rept.errors import UsageError
from rept.evaluation.sanity import agreement_with, chosen_checks, self_retrieval, shared_hits, shuffled
from rept.evaluation.stored_scores import signatures_of
from rept.results.trace import Trace
from rept.store.reader import AttributionStore
from rept.utils.json_files import read_json
from tests.conftest import Material
from tests.evaluation.test_compare import arguments
from tests.helpers.tiny import tiny_model

EXPERIMENTS = ["repsim", "bm25", "random", "tracin", "lissa"]


def words(material: Material, out: Path, *more: str) -> list[str]:
    small = ["tracin.extractor.dimension=64", "lissa.extractor.dimension=16", "lissa.extractor.weights=q_proj"]
    kept = [word for word in arguments(material, *small) if not word.startswith("top_k")]
    return [f"experiments=[{','.join(EXPERIMENTS)}]", f"out={out}", *kept, "top_k=41", *more]


@pytest.fixture(scope="module")
def compared(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    out = tmp_path_factory.mktemp("compared")
    torch.set_num_threads(1)
    run(words(material, out))
    return out, {one["experiment"]: one["sanity"] for one in read_json(out / "comparison.json")["methods"]}


def scores(trace: Trace) -> list[dict[int, float]]:
    return [{hit.row: hit.score for hit in trace.hits(query)} for query in range(len(trace.queries))]


def test_methods_that_do_not_read_the_model_agree_exactly_with_themselves(compared):
    found = compared[1]
    assert found["bm25"]["randomised"] == 1.0 and found["random"]["randomised"] == 1.0
    assert all(abs(found[name]["randomised"]) < 1 for name in ("repsim", "tracin", "lissa"))
    assert all(one["seconds"] > 0 and one["reason"] is None for one in found.values())


def test_agreement_is_the_mean_of_spearmans_correlations(compared):
    out, found = compared
    for name in ("repsim", "tracin"):
        real, other = scores(Trace(out / name)), scores(Trace(out / "shuffled" / name))
        expected = [
            spearmanr([one[row] for row in sorted(one)], [two[row] for row in sorted(one)]).statistic
            for one, two in zip(real, other, strict=True)
            if one  # the model's own answer may be empty
        ]
        assert len(real[0]) == 37 and len(expected) >= 4
        assert found[name]["randomised"] == pytest.approx(np.mean(expected), abs=2e-3)  # hits have 7 digits
        assert agreement_with(Trace(out / name), Trace(out / name)) == pytest.approx(1.0)


def test_the_shuffled_run_has_the_responses_and_layers_of_the_real_one(compared):
    out, _ = compared
    real, other = Trace(out / "repsim"), Trace(out / "shuffled/repsim")
    assert [one["response"] for one in other.queries] == [one["response"] for one in real.queries]
    assert other.layers["layers"] == real.layers["layers"]
    assert other.provenance["fingerprints"]["weights"] != real.provenance["fingerprints"]["weights"]


def test_shuffling_permutes_each_weight_in_place_and_keeps_ties():
    model, other, third = tiny_model("gemma"), tiny_model("gemma"), tiny_model("gemma")
    shuffled(other, seed=3)
    shuffled(third, seed=3)
    assert other.lm_head.weight is other.get_input_embeddings().weight
    for (name, one), two, three in zip(model.named_parameters(), other.parameters(), third.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values), name
        assert torch.equal(two, three)
        assert one.unique().numel() < 3 or not torch.equal(one, two)


def test_weights_that_are_not_there_are_refused():
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(torch.empty(8, 8, device="meta"), requires_grad=False)
    with pytest.raises(UsageError, match="The weights of lm_head.weight cannot be shuffled"):
        shuffled(model)


def test_overlap_is_the_mean_over_all_pairs_of_queries_with_different_behaviours(compared, tmp_path: Path):
    out, found = compared
    assert found["repsim"]["overlap"] is None  # all labelled queries of the material are odd
    folder = tmp_path / "run"
    shutil.copytree(out / "repsim", folder)
    file = folder / "queries.jsonl"
    labels = ["odd", "even", "odd", "third", "clean"]
    lines = file.read_text().splitlines()
    file.write_text("".join(_labelled(line, label) for line, label in zip(lines, labels, strict=True)))
    trace = Trace(folder)
    first = [{hit.row for hit in trace.hits(query)[:10]} for query in range(5)]
    pairs = [(i, j) for i, j in combinations(range(4), 2) if labels[i] != labels[j]]
    assert shared_hits(trace) == pytest.approx(np.mean([len(first[i] & first[j]) / 10 for i, j in pairs]))


def _labelled(line: str, label: str) -> str:
    known = next(name for name in ("odd", "clean") if f'"label": "{name}"' in line)
    return line.replace(f'"label": "{known}"', f'"label": "{label}"') + "\n"


def test_rows_find_themselves_by_cosine(compared):
    out, found = compared
    assert found["repsim"]["self_retrieval"] == 1.0  # copies of a row count as the row
    assert self_retrieval(Trace(out / "repsim"), drawn=5, seed=1) == 1.0


def test_self_retrieval_counts_rows_whose_own_score_is_the_highest(compared, material: Material):
    out, found = compared
    trace = Trace(out / "tracin")
    store = AttributionStore(signatures_of(trace), "train")
    (block,) = store.read(store.attributed, AttributionStore(signatures_of(trace), "query").keys).values()
    best = store.attributed[(block @ block.T).argmax(0).numpy()]
    text = [(row["prompt"], row["response"]) for row in material.rows]
    expected = np.mean([text[row] == text[hit] for row, hit in zip(store.attributed, best, strict=True)])
    assert expected < 1  # by inner products, long gradients win
    assert found["tracin"]["self_retrieval"] == pytest.approx(expected)


def test_the_same_comparison_again_reuses_the_shuffled_runs(compared, material: Material):
    out, found = compared
    before = {path: path.stat().st_mtime_ns for path in (out / "shuffled").rglob("shards/*.h5")}
    run(words(material, out))
    again = {one["experiment"]: one["sanity"] for one in read_json(out / "comparison.json")["methods"]}
    after = {path: path.stat().st_mtime_ns for path in (out / "shuffled").rglob("shards/*.h5")}
    assert before == after and before
    for name, one in again.items():
        assert one["randomised"] == found[name]["randomised"]


def test_checks_are_chosen_and_shown(compared, material: Material, capsys: pytest.CaptureFixture[str]):
    out, _ = compared
    run(words(material, out, "sanity=[self]"))
    assert "Sanity checks" in capsys.readouterr().out
    methods = read_json(out / "comparison.json")["methods"]
    assert all(one["sanity"]["randomised"] is None and one["sanity"]["self_retrieval"] is not None for one in methods)
    run(words(material, out, "sanity=[]"))
    assert "Sanity checks" not in capsys.readouterr().out


def test_a_method_that_reads_queries_in_another_way_has_no_self_retrieval(compared):
    trace = Trace(compared[0] / "tracin")
    assert trace.provenance["symmetric"] and self_retrieval(trace) is not None
    trace.provenance["symmetric"] = False
    assert self_retrieval(trace) is None


def test_a_suite_has_no_sanity_checks():
    with pytest.raises(UsageError, match="a suite has no sanity checks"):
        run(["suite=hard", "sanity=[self]"])


def test_a_method_with_a_model_of_its_own_gets_the_reason(compared, material: Material, capsys):
    out, _ = compared
    run([*words(material, out / "other", "repsim.datamodule.max_length=63")])
    methods = {one["experiment"]: one["sanity"] for one in read_json(out / "other/comparison.json")["methods"]}
    assert methods["bm25"]["randomised"] is None and methods["bm25"]["reason"] == "It has a model or data of its own."
    assert "with shuffled weights did not run" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["self", ["selves"], [["self"]], 3, {}])
def test_a_wrong_choice_is_refused(wrong):
    with pytest.raises(UsageError, match="Expected sanity to be a list of randomised, overlap, self"):
        chosen_checks(wrong)
