"""What a run needs, built from its configuration and checked before anything long has run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from rept.calibration import references
from rept.config.compose import build, compose
from rept.errors import UsageError
from rept.model.architecture import NAMES, Architecture
from rept.model.loading import load_model, load_tokenizer
from rept.model.placement import check_placement, claim_device, keep_batches
from rept.ranking.token_influence import check_form, check_layer
from rept.results.run_folder import RunFolder
from rept.run.job import Job
from rept.signatures.extractor import ReadsAllPositions
from rept.signatures.layer_strategy import LayerStrategy
from rept.store.writer import check_shards
from rept.training import finetune
from rept.training.model_folder import ModelFolder
from rept.types import Side
from rept.utils.console import say
from rept.utils.library_logging import quiet


def prepare(
    config: DictConfig,
    *,
    trainer: Trainer | None = None,
    model: Any = None,
    tokenizer: Any = None,
    datamodule: Any = None,
    extractor: Any = None,
    strategy: LayerStrategy | None = None,
    scorer: Any = None,
    make_model: bool = True,
    sides: Sequence[Side] = ("train", "query"),
) -> Job:
    """The collaborators of a run; those that are given are not built. What is cheap to check is checked first."""
    trainer = trainer or build_trainer(config)
    seed_everything(config.seed, verbose=False)
    datamodule = datamodule or build(config.datamodule)
    extractor, scorer = extractor or build(config.extractor), scorer or build(config.scorer)
    strategy = strategy or build(config.layers)
    check_fields(extractor, scorer)
    check_numbers(config)
    check_form(config.tokens.form)
    check_placement(trainer, config.model)
    for side in sides:
        if not len(datamodule.source(side)):  # what is wrong with the data is told before the model is loaded
            raise UsageError(f"Expected at least one {side} row, but the data set is empty.")
    if model is None:
        claim_device(trainer)
        path = ensure_model(config, datamodule, make_model)
        tokenizer, model = load_configured(config, path)
    if config.tokens.hits and isinstance(extractor, ReadsAllPositions):
        check_layer(config.tokens.layer, len(Architecture.of(model)))
    datamodule.attach(tokenizer)
    extractor.attach(model, tokenizer)
    return Job(config, RunFolder(config.out), model, tokenizer, datamodule, extractor, scorer, strategy, trainer)


def check_numbers(config: DictConfig) -> None:
    """Raises UsageError where a count is below its least, or a setting of store or calibration is out of its range."""
    for key, least in (("top_k", 1), ("bottom_k", 0), ("max_new_tokens", 1), ("tokens.hits", 0)):
        value = OmegaConf.select(config, key)
        if value < least:
            raise UsageError(f"Expected {key} to be at least {least}, but got {value}.")
    check_shards(config.store.dtype, config.store.shard_rows)
    references.check_calibration(config)


def check_fields(extractor: Any, scorer: Any) -> None:
    """Raises UsageError where the scorer reads fields that the extractor does not give."""
    lacking = [field for field in scorer.needs if field not in extractor.fields]
    if lacking:
        raise UsageError(
            f"{type(scorer).__name__} reads {', '.join(lacking)}, but {type(extractor).__name__} gives only "
            f"{', '.join(extractor.fields)}: choose another scorer, or other extractor.fields."
        )


def build_trainer(config: DictConfig) -> Trainer:
    """Lightning's trainer as configured, with what prediction with gradients needs."""
    quiet()
    if not 0 < config.max_wait < math.inf:
        raise UsageError(f"Expected max_wait to be a number of seconds above 0, but got {config.max_wait}.")
    try:
        trainer = build(
            config.trainer,
            inference_mode=False,  # gradients are read
            use_distributed_sampler=False,  # the batch plan deals out batches itself
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from None
    keep_batches(trainer)
    return trainer


def ensure_model(config: DictConfig, datamodule: Any, make: bool = True) -> str:
    """The path of the model: the configured one, or the one that goes with embedded data, made if it is not there.

    Raises:
        UsageError: none is configured and the data bring none, or theirs was trained on other data or must not be made.
    """
    if config.model.path:
        return config.model.path
    if datamodule.default_model is None:
        raise UsageError("Expected model.path to name the model's folder or hub id, but it is not set.")
    path = datamodule.default_model
    if not (Path(path) / "config.json").is_file():
        if not make:
            raise UsageError(f"There is no model in {path} yet: a run of attribute.py with these settings makes it.")
        say(f"There is no model in {path} yet: it is trained on the embedded data first.")
        settings = [f"datamodule.{name}={json.dumps(value)}" for name, value in datamodule.trained_on.items()]
        finetune.train_model(compose("train", [*settings, f"out={path}"]))
    elif different := ModelFolder(path).other_data(datamodule.trained_on):
        raise UsageError(
            f"{path} was trained on other data: {different}. Name the model of this run's data by model.path=, or "
            "delete that folder, and one is made."
        )
    return path


def load_configured(config: DictConfig, path: str) -> tuple[Any, Any]:
    """(tokenizer, model) of ``config.model``, its parts named where structure does not tell them."""
    options = OmegaConf.to_container(config.model)
    names = {part: options.pop(part) for part in NAMES}
    tokenizer = load_tokenizer(path, options["adapter"], options["trust_remote_code"])
    model = load_model(**options | {"path": path})
    Architecture.of(model, **names)
    return tokenizer, model
