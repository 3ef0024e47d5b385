"""tokens_per_batch=auto, and batches that turn out not to fit after all."""

from __future__ import annotations

import json

import pytest
import torch

from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run import auto_batch_size
from rept.run.auto_batch_size import largest_budget
from rept.run.pipeline import attribute
from tests.data.test_datamodule import module


@pytest.mark.parametrize(("most", "found"), [(70, 64), (129, 128), (20, 16), (0, 1)])
def test_the_budget_is_the_largest_power_that_fits(most, found):
    data = module(tokens_per_batch=32, window=24)
    tried = []

    def fits(batch):
        tried.append(data.tokens_per_batch)
        return data.tokens_per_batch <= most

    assert largest_budget(data, range(24), fits) == found
    assert len(tried) == len(set(tried)) or not most


def test_a_budget_beyond_what_is_ever_together_is_not_tried():
    data = module(tokens_per_batch=32, window=24)
    found = largest_budget(data, range(24), lambda batch: True)
    longest = max(batch.input_ids.numel() for batch in data.batches("train", range(24)))
    assert longest <= found < 2 * longest + 32 and len(list(data.batches("train", range(24)))) == 1


def test_the_number_that_was_found_is_kept_and_reused(material, tmp_path, monkeypatch, capsys):
    auto = ("datamodule.tokens_per_batch=auto",)
    monkeypatch.setattr(auto_batch_size, "find_budget", lambda job, layers: 96)
    first = attribute(material.config(tmp_path / "run", *auto), show_result=False)
    assert first.provenance["tokens_per_batch"] == first.provenance["fingerprints"]["tokens_per_batch"] == 96
    results = first.folder.results.read_bytes()
    monkeypatch.setattr(auto_batch_size, "find_budget", lambda job, layers: pytest.fail("searched again"))
    again = attribute(material.config(tmp_path / "run", *auto), show_result=False)
    assert again.folder.results.read_bytes() == results
    said = capsys.readouterr().out
    assert "96 tokens." in said and "96 tokens, found before, reused" in said


def test_on_a_processor_it_is_the_default(material, tmp_path):
    trace = attribute(material.config(tmp_path / "run", "datamodule.tokens_per_batch=auto"), show_result=False)
    assert trace.provenance["tokens_per_batch"] == 2048


def test_neither_auto_nor_a_number(material, tmp_path):
    with pytest.raises(UsageError, match="tokens_per_batch"):
        attribute(material.config(tmp_path / "run", "datamodule.tokens_per_batch=most"), show_result=False)


def test_batches_that_do_not_fit_are_told_noted_and_change_no_result(material, tmp_path, monkeypatch, capsys):
    whole = attribute(material.config(tmp_path / "whole"), show_result=False)
    extract, refused = ResidualStream.__call__, []

    def short_of_memory(self, model, batch, layers):
        if batch.input_ids.numel() > 100 and len(batch) > 1:
            refused.append(batch.input_ids.numel())
            raise torch.cuda.OutOfMemoryError("injected")
        return extract(self, model, batch, layers)

    monkeypatch.setattr(ResidualStream, "__call__", short_of_memory)
    trace = attribute(material.config(tmp_path / "run"), show_result=False)
    cut = trace.provenance["halved_batches"]
    said = capsys.readouterr().out
    assert cut > len(refused) > 0, "what does not fit once is not tried again at that size"
    assert "do not fit on the device" in said and f"{cut} batches did not fit" in said
    assert same_hits(trace, whole)
    attribute(material.config(tmp_path / "run"), show_result=False)
    assert Trace(tmp_path / "run").provenance["halved_batches"] == cut  # nothing was computed, nothing is forgotten


def same_hits(trace: Trace, other: Trace) -> bool:
    lines, expected = (
        [json.loads(line) for line in one.folder.results.read_text().splitlines()] for one in (trace, other)
    )
    close = all(abs(a["score"] - b["score"]) < 1e-4 for a, b in zip(lines, expected, strict=True))  # float16 rows
    return close and [line["query"] for line in lines] == [line["query"] for line in expected]
