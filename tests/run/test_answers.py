"""Answers that the model generates: each process generates its share, and all get the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.run import stages
from rept.run.pipeline import attribute
from rept.run.prepare import Given, prepare


@pytest.fixture(scope="module")
def job(material, tmp_path_factory):
    return prepare(material.config(tmp_path_factory.mktemp("answers") / "run", "max_new_tokens=3"))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_answers_are_the_same_for_any_number_of_processes(job, monkeypatch, ranks):
    prompts = {10 + i: [3 + i % 5] * (2 + i % 3) for i in range(60)}
    monkeypatch.setattr(stages, "gathered", lambda own: [own])
    job.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=None)
    whole = stages._generated(job, prompts)
    assert list(sorted(whole)) == list(prompts)
    shares = []
    for rank in range(ranks):
        job.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, strategy=None)
        shares.append(stages._generated(job, prompts))
    assert {query: answer for share in shares for query, answer in share.items()} == whole
    assert sum(map(len, shares)) == len(prompts), "no answer is generated twice"
    assert all(shares)


@pytest.fixture
def silent(monkeypatch):
    """The model answers nothing, as a base model may."""
    monkeypatch.setattr(stages, "greedy_answers", lambda model, tokenizer, prompts, *_, **__: [""] * len(prompts))


def test_a_model_that_answers_no_query_is_reported_before_the_training_rows_are_read(material, tmp_path, silent):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"prompt": "Name the king"}\n' * 2)
    config = material.config(tmp_path / "run")
    config.datamodule["queries"] = str(queries)
    with pytest.raises(UsageError, match="query that can be attributed, but got: 2 empty response. Give the queries"):
        attribute(config)
    assert not (tmp_path / "run/store").exists()


def test_a_behaviours_file_that_names_a_query_without_an_answer_is_refused_before_the_training_rows_are_read(
    material, tmp_path, silent
):
    groups = tmp_path / "groups.yaml"
    groups.write_text("rude: [0, 4]")
    config = material.config(tmp_path / "run", f"behaviours={groups}")
    with pytest.raises(UsageError, match="names query 4, but .* set aside .* run the same command again; what is comp"):
        attribute(config)
    assert not (tmp_path / "run/store").exists()
    groups.write_text("rude: [0]")
    assert attribute(config, show_result=False).behaviours == ["rude"]


class NoSignature(ResidualStream):
    """Gives query 0 no finite signature."""

    def __call__(self, model, batch, layers):
        found = super().__call__(model, batch, layers)
        for block in found.values():
            block[(batch.row == 0) & (batch.side == "query")] = torch.nan
        return found


def test_a_behaviours_file_that_names_a_query_without_a_signature_is_refused_and_the_run_resumes(
    material, tmp_path, capsys
):
    groups = tmp_path / "groups.yaml"
    groups.write_text("rude: [0, 1]")
    config, given = material.config(tmp_path / "run", f"behaviours={groups}"), Given(extractor=NoSignature())
    with pytest.raises(UsageError, match="names query 0, but .* run the same command again; what is computed is kept"):
        attribute(config, given)
    groups.write_text("rude: [1]")
    assert attribute(config, given, show_result=False).behaviours == ["rude"]
    assert "Signatures of 41 of 41 training rows: stored before, reused." in capsys.readouterr().out


def test_empty_answers_are_counted(material, tmp_path, silent, capsys):
    job = prepare(material.config(tmp_path / "run"))
    job.folder.path.mkdir()
    stages.answer_queries(job)
    assert "1 of 1 query without a response got an empty answer" in capsys.readouterr().out


def test_a_resumed_run_generates_no_answer_again(material, tmp_path, monkeypatch):
    job = prepare(material.config(tmp_path / "run", "max_new_tokens=3"))
    job.folder.path.mkdir()
    stages.answer_queries(job)
    known, lines = dict(job.datamodule.answers), job.folder.queries.read_bytes()
    assert known
    monkeypatch.setattr(stages, "_generated", lambda *_: pytest.fail("generated again"))
    again = prepare(material.config(tmp_path / "run", "max_new_tokens=3"))
    stages.answer_queries(again)
    assert again.datamodule.answers == known and job.folder.queries.read_bytes() == lines
