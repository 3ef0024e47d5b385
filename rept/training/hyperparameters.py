"""The hyperparameters of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rept.errors import UsageError


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained; configs/train.yaml explains each field. Raises UsageError for a value out of range."""

    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    checkpoint_steps: int | None = None
    lora_rank: int | None = None
    lora_alpha: float = 32
    lora_dropout: float = 0.05
    lora_targets: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "checkpoint_steps", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"Expected finetune.{name} to be above 0, but got {value}.")
        for name in ("warmup", "lora_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UsageError(f"Expected finetune.{name} to be at least 0 and below 1, but got {value}.")
