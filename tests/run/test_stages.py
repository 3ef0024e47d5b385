"""An extractor that learns: before it is first called, and again where signatures must be computed again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import nn

from extractors.sites.residual_stream import ResidualStream
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.run import stages
from rept.run.dry_run import estimate
from rept.run.pipeline import attribute
from rept.run.prepare import prepare
from rept.store.shards import shard_paths
from rept.types import Batch, Signature

LEARNING = "extractor._target_=tests.run.test_stages.Learning"


class Learning(ResidualStream):
    """Signatures less the mean input token of the rows it has learned from."""

    fit_rows = 4

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        self._mean = torch.cat([batch.input_ids.flatten() for batch in batches]).double().mean().float()

    def __call__(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        if not hasattr(self, "_mean"):
            raise UsageError("Nothing was learned.")
        return {key: block - self._mean for key, block in super().__call__(model, batch, layers).items()}


def test_what_is_repaired_is_computed_by_an_extractor_that_has_learned(material, tmp_path, capsys):
    first = attribute(material.config(tmp_path / "run", LEARNING), show_result=False)
    results = first.folder.results.read_bytes()
    assert "learns from 4 training rows" in capsys.readouterr().out
    attribute(material.config(tmp_path / "run", LEARNING), show_result=False)
    assert "learns" not in capsys.readouterr().out
    (shard,) = shard_paths(first.folder.store, "train")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    attribute(material.config(tmp_path / "run", LEARNING, "store.repair=true"), show_result=False)
    assert "Removed 1 damaged" in capsys.readouterr().out
    assert first.folder.results.read_bytes() == results


@pytest.mark.parametrize("stored", [False, True])
def test_a_dry_run_lets_it_learn(material, tmp_path, stored):
    config = material.config(tmp_path / "run", LEARNING)
    if stored:
        attribute(config, show_result=False)
    assert estimate(config)["seconds of extraction"] > 0


@pytest.mark.parametrize("change", ["datamodule.tokens_per_batch=64", "layers.layers=[1]"])
def test_what_does_not_fit_is_reported_before_it_learns(material, tmp_path, change, capsys):
    attribute(material.config(tmp_path / "run", LEARNING), show_result=False)
    (tmp_path / "run/store/digests.json").unlink()  # as in a run that was stopped
    capsys.readouterr()
    with pytest.raises(UsageError, match="holds signatures made differently"):
        attribute(material.config(tmp_path / "run", LEARNING, change), show_result=False)
    assert "learns" not in capsys.readouterr().out


def test_labels_may_change_without_a_new_store_but_not_without_a_new_choice_by_labels(material, tmp_path):
    fixed = [argument for argument in material.arguments(tmp_path / "run") if not argument.startswith("layers")]
    made = []
    for label in ("odd", "other"):
        train = tmp_path / "train.jsonl"
        rows = [row | {"label": label} if row["label"] == "odd" else row for row in material.rows]
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = prepare(compose(AttributeConfig, [*fixed, f"datamodule.train={train}", "layers=labelled_probe"]))
        made.append((stages.initial_fingerprints(job), stages.select_layers(job)["strategy"]))
    (first, chosen), (again, chosen_again) = made
    assert first == again
    assert chosen != chosen_again and chosen | chosen_again == chosen_again
