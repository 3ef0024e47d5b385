"""What --dry-run predicts, against the run."""

from __future__ import annotations

import pytest

from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.run.dry_run import estimate, padded_tokens
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
    assert "Estimate" in capsys.readouterr().out


def test_before_the_model_of_the_embedded_data_exists_one_of_its_shape_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["datamodule.rows=60", "datamodule.poisoned=4", "datamodule.queries=2"]
    figures = estimate(compose(AttributeConfig, [*data, "layers=last", "trainer.accelerator=cpu", "out=run"]))
    assert figures["training rows"] == 60 and figures["bytes of the store"] > 0
    assert "no model in runs/demo/model-rows-60-poisoned-4 yet: an untrained one" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not any(tmp_path.iterdir())
