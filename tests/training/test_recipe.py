"""The recipe of a training: read from training.yaml, and compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from rept.config.compose import compose, to_yaml
from rept.config.schema import TrainConfig
from rept.errors import UsageError
from rept.training.recipe import changes, read_recipe


def test_a_recipe_is_read_from_a_model_folder_or_a_file(tmp_path: Path):
    config = compose(TrainConfig, ["model.width=16", "trainer.max_epochs=2", "seed=3"])
    (tmp_path / "training.yaml").write_text(to_yaml(config))
    assert read_recipe(tmp_path) == read_recipe(tmp_path / "training.yaml") == config
    assert config.model["seed"] == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "but there is no file"),
        ("model: {path: a", "but got"),
        ("- 1", "but got"),
        ("model: {path: a}\nnonsense: 1\ntrainer: {max_epochs: 1}", "nonsense"),
        ("model: {path: a}", "lacks model or trainer"),
        ("", "lacks model or trainer"),
    ],
)
def test_what_is_no_recipe_is_reported(tmp_path: Path, text: str | None, reason: str):
    if text is not None:
        (tmp_path / "training.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"with the keys model, datamodule, finetune, trainer.*{reason}"):
        read_recipe(tmp_path / "training.yaml")


def test_changes_are_named_and_long_values_cut():
    one, other = (asdict(compose(TrainConfig, [f"seed={seed}"])) for seed in (0, 1))
    other["datamodule"]["exclude"] = list(range(1000))
    assert changes(one, one) == ""
    named = changes(one, other)
    assert named.startswith("model.seed was 0, now 1; datamodule.exclude was None, now [0, 1, 2,") and len(named) < 200
    assert changes(one, other, ["datamodule.exclude", "model.seed"]) == "seed was 0, now 1"
