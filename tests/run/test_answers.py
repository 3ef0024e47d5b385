"""Answers that the model generates: each process generates its share, and all get the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rept.run import stages
from rept.run.prepare import prepare


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
