"""The length of a sample, a baseline that any other method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature


class TextLength(Extractor):
    """``log(1 + tokens)`` of prompt and response together, as one number; the model is not run."""

    comparable = False  # one number has no direction
    fields = ("length",)

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        return {Key("text", 0, "length"): torch.log1p(batch.length.float()).unsqueeze(1)}
