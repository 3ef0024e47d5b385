"""Job: everything that one run works with."""

from __future__ import annotations

from dataclasses import dataclass

from lightning import Trainer

from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.model.placement import splits
from rept.ranking.scorer import Scorer
from rept.results.run_folder import RunFolder
from rept.signatures.extractor import Extractor
from rept.signatures.layer_strategy import LabelledLayerStrategy, LayerStrategy
from rept.types import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Job:
    """The collaborators of one run."""

    config: AttributeConfig
    folder: RunFolder
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    datamodule: AttributionDataModule  # tokenizer attached
    extractor: Extractor
    scorer: Scorer
    strategy: LayerStrategy | LabelledLayerStrategy
    trainer: Trainer

    @property
    def learns(self) -> bool:
        """Whether the extractor learns from training rows before it extracts."""
        return self.extractor.fit_rows != 0

    @property
    def in_step(self) -> bool:
        """Whether all ranks must run the model at the same time, since each holds only a share of it."""
        return splits(self.trainer)
