"""Prepares a run: builds what its configuration names, and checks it before anything slow starts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from lightning import Trainer, seed_everything

from rept.calibration.references import check_calibration
from rept.config.compose import compose, read_yaml
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig, TrainConfig
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.model.architecture import NAMES, Architecture
from rept.model.freezing import freeze
from rept.model.placement import check_placement, claim_device, keep_batches
from rept.ranking.scorer import Scorer
from rept.ranking.token_influence import check_form, check_layer
from rept.results.run_folder import RunFolder
from rept.run.checks import check_behaviours, check_data, check_fields, check_numbers
from rept.run.job import Job
from rept.signatures.extractor import Extractor, ReadsAllPositions
from rept.signatures.layer_strategy import LabelledLayerStrategy, LayerStrategy
from rept.training.finetune import train_model
from rept.training.initial_model import ModelAndTokenizer, initial_model, pretrained
from rept.training.model_folder import ModelFolder
from rept.training.trainer import build_trainer, set_timeout
from rept.types import SIDES, Side
from rept.utils.console import say

MissingModel = Literal["train", "untrained", "refuse"]


@dataclass(frozen=True)
class Given:
    """Objects that are used instead of what a configuration names."""

    loaded: ModelAndTokenizer | None = None
    datamodule: AttributionDataModule | None = None
    extractor: Extractor | None = None
    strategy: LayerStrategy | LabelledLayerStrategy | None = None
    scorer: Scorer | None = None


def prepare(
    config: AttributeConfig,
    given: Given | None = None,
    *,
    trainer: Trainer | None = None,
    missing_model: MissingModel = "train",
    sides: Sequence[Side] = SIDES,
) -> Job:
    """Returns everything that a run works with.

    Args:
        trainer: of `attribution_trainer`; None: built.
        missing_model: what to do if the model of embedded data does not exist yet: train it, use it untrained, for
            estimates, or refuse.
        sides: whose rows are needed.

    Raises:
        UsageError: a user's mistake; cheap checks come first.
    """
    given, trainer = given or Given(), trainer or attribution_trainer(config)
    seed_everything(config.seed, verbose=False)
    datamodule = given.datamodule or build(config.datamodule, AttributionDataModule)
    extractor = given.extractor or build(config.extractor, Extractor)
    scorer = given.scorer or build(config.scorer, Scorer)
    strategy = given.strategy or build(config.layers, LayerStrategy)
    check_fields(extractor, scorer)
    check_numbers(config)
    check_calibration(config.calibration, extractor.comparable, scorer.needs)
    check_form(config.tokens.form)
    check_placement(trainer, config.model)
    check_data(datamodule, sides)
    if "query" in sides:
        check_behaviours(config, range(len(datamodule.source("query"))))
    if given.loaded is None:
        claim_device(trainer)
    model, tokenizer = given.loaded or _loaded(config, datamodule, missing_model)
    if config.tokens.hits and isinstance(extractor, ReadsAllPositions):
        check_layer(config.tokens.layer, len(Architecture.of(model)))
    datamodule.attach(tokenizer)
    if different := _other_targets(config):
        say(different)
    if not tokenizer.chat_template:
        say(
            "The tokenizer has no chat template, so samples are rendered as plain text, each turn as its role, a colon "
            r"and the text on a new line: User:\n...\n\nAssistant:\n..."
        )
    extractor.attach(model, tokenizer)
    return Job(config, RunFolder(config.out), model, tokenizer, datamodule, extractor, scorer, strategy, trainer)


def _other_targets(config: AttributeConfig) -> str:
    """A sentence, if train.py trained the model on other turns of conversations than the run reads; else empty."""
    path = config.model.adapter or config.model.path
    file = ModelFolder(path).config if path else None
    known = read_yaml(file)["datamodule"].get("targets") if file and file.is_file() else None
    now = config.datamodule.get("targets", known)
    if known in (None, now):
        return ""
    return (
        f"The model was trained with datamodule.targets={known}, but this run has {now}: if conversations have several "
        f"assistant turns, give datamodule.targets={known}."
    )


def _loaded(config: AttributeConfig, datamodule: AttributionDataModule, missing: MissingModel) -> ModelAndTokenizer:
    if missing == "untrained" and (path := missing_path(config, datamodule)):
        say(f"There is no model in {path} yet: an untrained one is used, and its training is not included.")
        loaded = initial_model(_training(datamodule, path).model, datamodule)
        freeze(loaded[0])
        return loaded
    return load_configured(config, ensure_model(config, datamodule, missing == "train"))


def attribution_trainer(config: AttributeConfig) -> Trainer:
    """Returns the configured Trainer with what prediction with gradients needs.

    Raises UsageError if ``max_wait`` is not a number of seconds, or Lightning refuses the arguments.
    """
    if not 0 < config.max_wait < math.inf:
        raise UsageError(f"Expected max_wait to be a number of seconds above 0, but got {config.max_wait}.")
    trainer = build_trainer(config.trainer, inference_mode=False, logger=False, enable_checkpointing=False)
    set_timeout(trainer, config.max_wait)
    keep_batches(trainer)
    return trainer


def ensure_model(config: AttributeConfig, datamodule: AttributionDataModule, make: bool = True) -> str:
    """Returns the path of the configured model, or that of the embedded data's model, which is trained if missing.

    Raises UsageError if there is no model, or the one of the embedded data was trained on other data.
    """
    if config.model.path:
        return config.model.path
    path = datamodule.default_model
    if path is None:
        raise UsageError("Expected model.path to name the model's folder or hub id, but it is not set.")
    if missing_path(config, datamodule):
        if not make:
            raise UsageError(f"There is no model in {path} yet: a run of attribute.py with these settings makes it.")
        say(f"There is no model in {path} yet: it is trained on the embedded data first.")
        train_model(_training(datamodule, path))
    elif different := ModelFolder(path).other_data(datamodule.trained_on):
        raise UsageError(
            f"{path} was trained on other data: {different}. Name the model of this run's data by model.path=, or "
            "delete that folder to have it trained again."
        )
    return path


def missing_path(config: AttributeConfig, datamodule: AttributionDataModule) -> str | None:
    """Returns the path of the embedded data's model if it is to be used but does not exist yet."""
    path = None if config.model.path else datamodule.default_model
    return None if path is None or (Path(path) / "config.json").is_file() else path


def _training(datamodule: AttributionDataModule, path: str) -> TrainConfig:
    """The training of the embedded data's model."""
    settings = [f"datamodule.{name}={json.dumps(value)}" for name, value in datamodule.trained_on.items()]
    return compose(TrainConfig, [*settings, f"out={path}"])


def load_configured(config: AttributeConfig, path: str) -> ModelAndTokenizer:
    """Returns model and tokenizer of ``config.model`` from ``path``, and registers the names of the model's parts."""
    model, tokenizer = pretrained(replace(config.model, path=path))
    Architecture.of(model, **{part: asdict(config.model)[part] for part in NAMES})
    return model, tokenizer
