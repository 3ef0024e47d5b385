"""Random vectors: the result of chance, as a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from extractors.gradients.projection import seeded
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature


class RandomVector(Extractor):
    """``width`` standard normal numbers drawn from seed, side and row number: batches and ranks do not matter."""

    fields = ("random",)

    def __init__(self, width: int = 64, seed: int = 0) -> None:
        self.width, self.seed = width, seed

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        generators = [seeded(self.seed, f"{batch.side}/{row}") for row in batch.row.tolist()]
        rows = [torch.randn(self.width, generator=generator) for generator in generators]
        return {Key("text", 0, "random"): torch.stack(rows).to(batch.input_ids.device)}
