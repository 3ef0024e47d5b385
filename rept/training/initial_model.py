"""The model that a training starts from: a new one, a loaded one, or a loaded one with a new LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import cast

from rept.config.plug_ins import build
from rept.config.schema import TARGET, ModelConfig, Node
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.model.architecture import NAMES
from rept.model.loading import load_model, load_tokenizer
from rept.training.hyperparameters import Hyperparameters
from rept.types import PreTrainedModel, PreTrainedTokenizerBase, Status

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def initial_model(node: Node, datamodule: AttributionDataModule) -> ModelAndTokenizer:
    """Returns the model and tokenizer of a configuration's ``model``.

    A node with a ``_target_`` is built and called with the training texts, as
    :class:`rept.training.from_scratch.FromScratch`; any other is a `ModelConfig`.
    """
    if TARGET in node:
        make = cast("Callable[[Iterable[str]], ModelAndTokenizer]", build(node, object))
        return make(_texts(datamodule))
    return pretrained(ModelConfig(**node))


def pretrained(config: ModelConfig) -> ModelAndTokenizer:
    """Returns the model and tokenizer at ``config.path``; raises as `load_model` and `load_tokenizer`."""
    options = {key: value for key, value in asdict(config).items() if key not in NAMES}  # which only attribution needs
    template = options.pop("chat_template")
    tokenizer = load_tokenizer(config.path, config.adapter, config.trust_remote_code, template)
    return load_model(**options), tokenizer


def trainable(model: PreTrainedModel, hyperparameters: Hyperparameters) -> PreTrainedModel:
    """Returns the model ready for training: all parameters in float32, or those of a new LoRA adapter.

    Half-precision weights lose small updates, so trained weights are kept in float32; the precision of the computation
    is the trainer's.

    Raises UsageError for LoRA of a new model, for LoRA targets that the model does not have, and for full training of a
    quantized model.
    """
    if hyperparameters.lora_rank is None:
        if getattr(model, "is_quantized", False):
            raise UsageError("A quantized model can only be trained with LoRA: set finetune.lora_rank.")
        model.float().requires_grad_(True)
        return model
    if not model.name_or_path:  # an adapter is saved with the path of its base model, and is useless without it
        raise UsageError(
            "finetune.lora_rank adapts a model that exists: name one by model=pretrained model.path=DIR, or leave out "
            "finetune.lora_rank to train all parameters of a new model."
        )
    from peft import LoraConfig, get_peft_model  # imported here because it takes a second

    targets = hyperparameters.lora_targets
    lora = LoraConfig(
        r=hyperparameters.lora_rank,
        lora_alpha=hyperparameters.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
        lora_dropout=hyperparameters.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return cast("PreTrainedModel", get_peft_model(model, lora))
    except ValueError as error:
        raise UsageError(f"finetune.lora_targets={targets}: {str(error).splitlines()[0]}") from None


def _texts(datamodule: AttributionDataModule) -> Iterator[str]:
    """Prompt and response of each training row that is not excluded."""
    source = datamodule.source("train")
    for row in range(len(source)):
        sample = source[row]
        if row not in datamodule.excluded and not isinstance(sample, Status):
            yield sample.prompt
            yield sample.response or ""
