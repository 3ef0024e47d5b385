"""The model that a training starts from: a new one, a loaded one, or a loaded one with a new LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from rept.config.compose import TARGET, build
from rept.errors import UsageError
from rept.model.architecture import NAMES
from rept.model.loading import load_model, load_tokenizer
from rept.training.hyperparameters import Recipe
from rept.types import Status


def initial_model(node: DictConfig, datamodule: Any) -> tuple[nn.Module, Any]:
    """(model, tokenizer) of a configuration's ``model``.

    A node with a ``_target_`` is built and called with the training texts, and makes both, as
    :class:`rept.training.from_scratch.FromScratch` does; one without is a path or hub id and the options of
    :func:`rept.model.loading.load_model`.
    """
    if TARGET in node:
        return build(node)(_texts(datamodule))
    given = OmegaConf.to_container(node, resolve=True)
    options = {key: value for key, value in given.items() if key not in NAMES}  # those are for attribution alone
    tokenizer = load_tokenizer(options["path"], options["adapter"], options["trust_remote_code"])
    return load_model(**options), tokenizer


def trainable(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with the parameters that the recipe trains: all of them, in float32, or those of a new LoRA adapter.

    Half-precision weights lose small updates, so what is trained is kept in float32; the trainer's precision says what
    is computed in.

    Raises:
        UsageError: LoRA targets that the model lacks, or all parameters of a quantized model.
    """
    if recipe.lora_rank is None:
        if getattr(model, "is_quantized", False):
            raise UsageError("A quantized model can only be trained by LoRA: set finetune.lora_rank.")
        return model.float().requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    targets = recipe.lora_targets if isinstance(recipe.lora_targets, str) else list(recipe.lora_targets)
    lora = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise UsageError(f"finetune.lora_targets={targets}: {str(error).splitlines()[0]}") from None


def _texts(datamodule: Any) -> Iterator[str]:
    """Prompt and response of each training row that is not excluded."""
    source = datamodule.source("train")
    for row in range(len(source)):
        sample = source[row]
        if row not in datamodule.excluded and not isinstance(sample, Status):
            yield sample.prompt
            yield sample.response or ""
