"""Text embeddings of any model of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from rept.errors import UsageError
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature


class SentenceEmbedding(Extractor):
    """Prompt and response, joined by a newline, as one vector of a text embedding model.

    Args:
        path: folder or hub id of a sentence-transformers model, which is loaded on the device of the first batch.

    Raises:
        UsageError: no path, or sentence-transformers is not installed (extra ``embeddings``).
    """

    fields = ("embedding",)

    def __init__(self, path: str | None = None) -> None:
        if not path:
            raise UsageError("extractor.path is not set: give a folder or hub id of a sentence-transformers model.")
        if find_spec("sentence_transformers") is None:
            raise UsageError(
                "extractor=sentence_embedding needs sentence-transformers: "
                "pip install sentence-transformers (extra `embeddings`)."
            )
        self.path = path
        self._encoder: Any = None

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        if self._encoder is None:
            from sentence_transformers import SentenceTransformer

            self._encoder = SentenceTransformer(self.path, device=str(batch.input_ids.device))
        texts = ["\n".join(pair) for pair in batch.text]
        vectors = self._encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return {Key("text", 0, "embedding"): vectors.float().clone()}
