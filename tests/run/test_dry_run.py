"""What --dry-run predicts, against the run."""

from __future__ import annotations

import pytest

from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.data.encoder import Encoded
from rept.run import dry_run
from rept.run.distinctive_tokens import BACKGROUND
from rept.run.dry_run import Cost, estimate, padded_tokens
from rept.run.pipeline import attribute
from rept.run.prepare import prepare


def test_padded_tokens_are_those_of_the_plan(material, tmp_path):
    job = prepare(material.config(tmp_path / "run"))
    rows = len(job.datamodule.source("train"))
    expected = sum(batch.input_ids.numel() for batch in job.datamodule.loader("train")) / rows
    assert padded_tokens(job.datamodule.sample_lengths("train", 1000), job.datamodule) == pytest.approx(expected)


@pytest.mark.parametrize("shard_rows", ["null", 4])
def test_the_prediction_holds(material, tmp_path, capsys, shard_rows):
    config = material.config(tmp_path / "run", f"store.shard_rows={shard_rows}")
    stated = estimate(config)
    trace = attribute(config, show_result=False)
    real = sum(path.stat().st_size for path in trace.folder.store.rglob("*") if path.is_file())
    assert stated["bytes of the store"] == pytest.approx(real, rel=0.3)
    peak = max(stage["peak_memory_bytes"] for stage in trace.provenance["stages"].values())
    assert stated["peak memory in bytes"] == pytest.approx(peak, rel=0.15)
    assert stated["bytes on the disk while labelled rows are ranked"] == 41 * (8 + 4 * 5)
    assert stated["seconds of extraction"] > 0
    assert stated["queries"] == 5 and stated["training rows"] == 41
    out = " ".join(capsys.readouterr().out.split())
    assert "Estimate" in out and "Not included: answers that the model generates, loading it, and the ranking" in out


@pytest.mark.parametrize("hits", [0, 3, 100])
def test_masked_prompts_and_the_background_count_as_a_third_of_their_tokens(material, tmp_path, monkeypatch, hits):
    monkeypatch.setattr(dry_run, "_measure", lambda job, layers: Cost(seconds=1.0, row_bytes=100))
    name = "seconds of the probe and the token scores"
    matched, distinctive = (
        estimate(material.config(tmp_path / "run", f"tokens.hits={hits}", f"tokens.form={form}"))[name]
        for form in ("matched", "distinctive")
    )
    data = prepare(material.config(tmp_path / "run")).datamodule
    copies, padded, scored = {}, {}, min(hits, 41)
    for side, rows in (("train", 41), ("query", 5)):
        texts = [one for row in range(rows) if isinstance(one := data.encoded(side, row), Encoded)]
        copies[side] = sum(text.prompt_length * len(text.input_ids) for text in texts) / len(texts)
        padded[side] = padded_tokens(data.sample_lengths(side, 1000), data) * rows
    expected = scored * 5 * copies["train"] + 5 * copies["query"] + 2 * min(BACKGROUND, 41) * padded["train"] / 41
    if not hits:
        assert matched == pytest.approx(0, abs=5) and distinctive == pytest.approx(0, abs=5)
        return
    once = scored * 5 * padded["train"] / 41 + padded["query"]
    assert matched == pytest.approx(once, abs=5)  # the probe takes less
    assert distinctive - matched == pytest.approx(expected / 3, abs=5)


def test_before_the_model_of_the_embedded_data_exists_one_of_its_shape_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["datamodule.rows=60", "datamodule.poisoned=4", "datamodule.queries=2"]
    figures = estimate(compose(AttributeConfig, [*data, "layers=last", "trainer.accelerator=cpu", "out=run"]))
    assert figures["training rows"] == 60 and figures["bytes of the store"] > 0
    assert "no model in runs/demo/model-rows-60-poisoned-4 yet: an untrained one" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not any(tmp_path.iterdir())
