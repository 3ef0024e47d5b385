"""The recipe of a training: base model, data, hyperparameters, trainer and seed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rept.config.compose import read_config
from rept.config.schema import TARGET, TrainConfig
from rept.errors import UsageError
from rept.utils.text import clip

RECIPE = "training.yaml"
_LONGEST = 60  # characters of a value in a message; a list of rows can be long


def read_recipe(path: str | Path) -> TrainConfig:
    """Returns the configuration in a model folder's training.yaml, or in a YAML file of the same form.

    Raises UsageError if there is none, or it does not name a model and a trainer.
    """
    given = Path(path).expanduser()
    file = given / RECIPE if given.is_dir() else given
    expected = f"a model folder with a {RECIPE}, or a file like it with the keys model, datamodule, finetune, trainer"
    if not file.is_file():
        raise UsageError(f"Expected {path} to be {expected}, but there is no file {file}.")
    try:
        recipe = read_config(file, TrainConfig)
    except Exception as error:  # the YAML parser behind OmegaConf raises types of its own
        reason = next(iter(str(error).splitlines()), "no mapping")
        raise UsageError(f"Expected {file} to be {expected}, but got: {reason}.") from None
    if not recipe.model or not recipe.trainer:
        raise UsageError(f"Expected {file} to be {expected}, but it lacks model or trainer.")
    recipe.trainer = {TARGET: "lightning.Trainer"} | recipe.trainer
    return recipe


def changes(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """Returns in words which settings of train.py differ, except the ``ignored`` dotted keys; empty if none does."""
    old, new = dict(_flat(before)), dict(_flat(now))
    different = [key for key in old | new if old.get(key) != new.get(key) and key not in ignored]
    return "; ".join(f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}" for key in different)


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of what decides the weights; `resume`, `compare_with` and `out` do not."""
    for group in ("model", "datamodule", "finetune", "trainer"):
        yield from ((f"{group}.{key}", value) for key, value in config[group].items())
    yield "seed", config["seed"]


def _short(value: object) -> str:
    return clip(str(value), _LONGEST)
