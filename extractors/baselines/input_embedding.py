"""The mean of a sample's token embeddings: a text embedding without another model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from extractors.sites.reader import text_mean
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature


class InputEmbedding(Extractor):
    """The model's own input embeddings, averaged over all tokens of prompt and response; the model is not run."""

    fields = ("embedding",)

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        with torch.no_grad():
            states = model.get_input_embeddings()(batch.input_ids)  # (B T D)
        return {Key("text", 0, "embedding"): text_mean(states, batch)}
