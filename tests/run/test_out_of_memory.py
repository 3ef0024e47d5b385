"""Batches that do not fit on the device: they are halved, reported, and change no result."""

from __future__ import annotations

import json

import torch

from extractors.sites.residual_stream import ResidualStream
from rept.results.trace import Trace
from rept.run.pipeline import attribute


def test_batches_that_do_not_fit_are_reported_counted_and_change_no_result(material, tmp_path, monkeypatch, capsys):
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
