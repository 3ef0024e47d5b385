"""Job: everything that one run works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig

from rept.model.placement import splits
from rept.results.run_folder import RunFolder
from rept.signatures.layer_strategy import LayerStrategy


@dataclass
class Job:
    """The collaborators of one run."""

    config: DictConfig
    folder: RunFolder
    model: torch.nn.Module
    tokenizer: Any
    datamodule: Any  # AttributionDataModule, tokenizer attached
    extractor: Any
    scorer: Any
    selector: LayerStrategy
    trainer: Trainer

    @property
    def learns(self) -> bool:
        """Whether the extractor learns from training rows before it extracts."""
        return getattr(self.extractor, "fit_rows", 0) != 0

    @property
    def in_step(self) -> bool:
        """Whether all ranks must run the model at the same time, since each holds only a share of it."""
        return splits(self.trainer)
