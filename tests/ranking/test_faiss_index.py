"""The approximate index compared with the exact ranking, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from rept.commands.approximate import run
from rept.errors import UsageError
from rept.ranking import faiss_index
from rept.ranking.faiss_index import ApproximateIndex
from rept.ranking.rank import rank
from rept.report.page import write_report
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.types import Key
from rept.utils.digests import file_digest
from scorers.centred import Centred
from scorers.cosine import Cosine
from scorers.inner_product import InnerProduct
from tests.helpers.stores import G, H, make, signatures

pytest.importorskip("faiss", reason="the extra faiss is not installed")
ROWS, K = 3000, 20


def clustered(rows: int, seed: int) -> dict:
    """Signatures around 40 centres, as those of samples of 40 kinds."""
    centres = {key: torch.randn(40, 16, generator=torch.Generator().manual_seed(9)) for key in (H, G)}
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(40, (rows,), generator=generator)
    return {
        key: (centre[kind] + 0.5 * torch.randn(rows, 16, generator=generator)) * (50 if key == H else 1e-3)
        for key, centre in centres.items()
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"), clustered(ROWS, 0), shard_rows=400)


@pytest.mark.parametrize("scorer", [Cosine(), InnerProduct(), Cosine(["gradient"])], ids=["cosine", "inner", "one"])
def test_the_index_finds_most_of_the_exact_hits(store, tmp_path, scorer):
    queries = clustered(30, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, scorer, list(queries))
    made = index.build(queries, K)
    hits, exact = index.search(queries, K), rank(store, queries, scorer, top_k=K).best
    recall = sum(len(set(a) & set(b)) for a, b in zip(hits.row.tolist(), exact.row.tolist(), strict=True)) / (30 * K)
    assert recall >= 0.93 and made.recall >= 0.95 and made.searched_lists < made.lists
    found = hits.row[:, 0] == exact.row[:, 0]
    assert found.sum() >= 27
    torch.testing.assert_close(hits.score[found, 0], exact.score[found, 0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [1e-9, 1e-5, 1e6])
def test_rows_of_any_size_are_found_by_their_inner_product(tmp_path, norm):
    """Elements below 6e-8 and above 65,504, which float16 cannot hold."""
    values, queries = ({H: norm * block} for block in (signatures(500)[G] * 1e4, signatures(9, seed=1)[G] * 1e4))
    store, scorer = make(tmp_path / "store", values, shard_rows=200), InnerProduct(["representation"])
    index = ApproximateIndex(tmp_path / "a.faiss", store, scorer, [H])
    made = index.build(queries, 500)
    hits, exact = index.search(queries, 500), rank(store, queries, scorer, top_k=500).best
    assert made.recall == 1
    largest = exact.score.abs().max()
    torch.testing.assert_close(hits.score / largest, exact.score / largest, rtol=0, atol=1e-3)


def test_the_index_averages_over_sites(tmp_path):
    keys = [H, G, Key("mlp_output", 3, "representation"), Key("mlp_output", 3, "gradient")]
    store, queries = make(tmp_path / "store", signatures(400, keys)), signatures(9, keys, seed=1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Cosine(), keys)
    index.build(queries, 400)
    hits, exact = index.search(queries, 400), rank(store, queries, Cosine(), top_k=400).best
    torch.testing.assert_close(hits.score, exact.score, rtol=2e-3, atol=1e-3)


def test_an_index_of_another_store_or_scorer_is_not_used(store, tmp_path):
    queries = clustered(10, 1)
    path = tmp_path / "a.faiss"
    index = ApproximateIndex(path, store, Cosine(), list(queries))
    assert not index.ready(K)
    index.build(queries, K)
    other = make(tmp_path / "other", clustered(200, 3), shard_rows=400)
    assert index.ready(K) and ApproximateIndex(path, store, Cosine(), list(queries)).ready(K)
    assert not ApproximateIndex(path, store, InnerProduct(), list(queries)).ready(K)
    assert not ApproximateIndex(path, other, Cosine(), list(queries)).ready(K)


def test_an_index_of_an_older_version_is_built_again(store, tmp_path):
    queries = clustered(10, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Cosine(), list(queries))
    index.build(queries, K)
    note = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({name: note[name] for name in note if name != "changed_ns"}))
    assert not index.ready(K)
    with pytest.raises(UsageError, match="Expected an index at .*a.faiss, but got none"):
        index.search(queries, K)
    index.build(queries, K)
    index.path.unlink()
    assert not index.ready(K)


def test_an_index_is_digested_only_where_the_file_was_changed(store, tmp_path, monkeypatch):
    queries = clustered(10, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Cosine(), list(queries))
    index.build(queries, K)
    digested = []
    monkeypatch.setattr(faiss_index, "file_digest", lambda path: digested.append(path) or file_digest(path))
    hits = index.search(queries, K)
    assert torch.equal(hits.row, index.search(queries, K).row) and not digested
    os.utime(index.path)  # as after it was copied
    assert torch.equal(index.search(queries, K).row, hits.row) and digested == [index.path]
    with index.path.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"damage")
    with pytest.raises(UsageError, match="a.faiss is damaged .* delete it and give the same command again to rebuild"):
        index.search(queries, K)


def test_more_hits_than_the_index_was_tuned_for_are_found(store, tmp_path):
    queries = clustered(10, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Cosine(), list(queries))
    index.build(queries, 1)
    assert index.ready(1) and not index.ready(ROWS // 2)
    for k in (ROWS // 2, ROWS + 7):
        rows = index.search(queries, k).row
        assert rows.shape[1] == min(k, ROWS) and (rows >= 0).all()
        assert all(len(set(found)) == len(found) for found in rows.tolist())
    assert index.build(queries, ROWS + 7).k == ROWS and index.ready(ROWS + 9)


def test_a_scorer_without_vectors_is_refused_in_a_sentence(store, tmp_path):
    queries = clustered(10, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Centred(), list(queries))
    with pytest.raises(UsageError, match="Centred are not inner products, .* python -m rept score"):
        index.build(queries, K)


def test_the_command_writes_the_hits(material, tmp_path, capsys):
    exact = attribute(material.config(tmp_path / "run"), show_result=False)
    run([str(tmp_path / "run"), f"out={tmp_path / 'near'}", "top_k=3"])
    near = [json.loads(line) for line in (tmp_path / "near/results.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in exact.folder.results.read_text().splitlines()]
    best = {line["query"]: line["row"] for line in lines if line["rank"] == 1}
    assert {line["query"]: line["row"] for line in near if line["rank"] == 1} == best
    assert len(near) == 3 * len(best) and Path(tmp_path / "near/config.yaml").is_file()
    run([str(tmp_path / "run"), f"out={tmp_path / 'again'}", "top_k=3"])
    assert capsys.readouterr().out.count("The index has") == 1
    run([str(tmp_path / "run"), f"out={tmp_path / 'all'}", "top_k=200"])
    found = [json.loads(line)["row"] for line in (tmp_path / "all/results.jsonl").read_text().splitlines()]
    assert len(found) == len(best) * exact.metrics["rows"]["attributed"] and min(found) >= 0
    with pytest.raises(UsageError, match="out= to name a folder"):
        run([str(tmp_path / "run")])
    trace = Trace(tmp_path / "near")
    assert trace.metrics["rows"] == exact.metrics["rows"] and not trace.opponents(0)
    assert write_report(trace).is_file()


@pytest.mark.parametrize(
    ("argument", "message"), [("datamodule.train=other", "scorer, top_k, out"), ("top_k=-1", "top_k to be at least 1")]
)
def test_the_command_refuses_settings_other_than_of_the_ranking(material, tmp_path, argument, message):
    base = material.config(tmp_path / "run")
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").write_config(base)
    with pytest.raises(UsageError, match=message):
        run([str(tmp_path / "run"), argument, f"out={tmp_path / 'near'}"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_leaves_the_old_index_file(store, tmp_path):
    queries = clustered(10, 1)
    index = ApproximateIndex(tmp_path / "a.faiss", store, Cosine(), list(queries))
    index.build(queries, K)
    whole = index.path.read_bytes()

    partial = tmp_path / ".a.faiss.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(
        UsageError, match="Expected to write .*a.faiss, but got: No space left on device; free disk space"
    ):
        index.build(queries, K)
    assert {path.name for path in tmp_path.iterdir()} == {"a.faiss"} and index.path.read_bytes() == whole
