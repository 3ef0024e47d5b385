"""The stage of token scores: each rank's share in a file, and rank 0's join."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from rept.errors import UsageError
from rept.run import token_stage
from rept.run.pipeline import attribute, prepare
from rept.run.token_stage import write_tokens
from rept.utils.json_files import each_line


@pytest.fixture(scope="module")
def config(material, tmp_path_factory):
    """All rows, those with marked spans among them, in small batches, so that there is something to share."""
    settings = ("top_k=40", "tokens.hits=40", "datamodule.tokens_per_batch=128")
    return material.config(tmp_path_factory.mktemp("tokens") / "run", *settings)


@pytest.fixture(scope="module")
def alone(config):
    return attribute(config, show_result=False)


@pytest.fixture
def as_rank(alone, config, monkeypatch):
    """Runs the stage as one of two ranks would, without the other."""
    job = prepare(config)
    job.datamodule.answers.update(alone.folder.known_answers())
    hits = {query: [hit.row for hit in alone.hits(query)] for query in range(len(alone.queries))}

    def run(rank):
        monkeypatch.setattr(token_stage, "process", lambda: (rank, 2))
        job.trainer = SimpleNamespace(is_global_zero=rank == 0, strategy=None)
        write_tokens(job, job.extractor, hits, 2)

    return run


def test_two_ranks_leave_what_one_leaves(alone, as_rank):
    folder = alone.folder
    before = folder.tokens.read_bytes(), folder.metrics.read_bytes()
    folder.tokens.unlink()
    as_rank(1)
    assert not folder.tokens.exists()
    share = len(list(each_line(folder.path / ".tokens-1-of-2")))
    as_rank(0)
    assert (folder.tokens.read_bytes(), folder.metrics.read_bytes()) == before
    assert 0.3 < share / len(before[0].splitlines()) < 0.7, "both ranks have something to do"
    assert "tokens" in alone.metrics and not list(folder.path.glob(".tokens-*"))


def test_rows_that_are_the_query_itself_do_not_count_in_the_token_measure(material, tmp_path):
    marked = [row for row in material.rows if "spans" in row][:1]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [material.asked[0], *marked]))
    settings = (f"datamodule.queries={tmp_path / 'queries.jsonl'}", "top_k=40", "tokens.hits=40")
    found = attribute(material.config(tmp_path / "run", *settings), show_result=False)
    assert sum(hit.same_as_query for hit in found.hits(1)) == 4
    assert found.metrics["tokens"]["texts"] == 4  # the marked rows for the first query alone


def test_a_share_that_is_missing_is_no_file_with_holes(alone, as_rank):
    """Rank 1 was killed before it had written its share: the old file stays whole."""
    before = alone.folder.tokens.read_bytes()
    with pytest.raises((UsageError, FileNotFoundError)):
        as_rank(0)
    assert alone.folder.tokens.read_bytes() == before
