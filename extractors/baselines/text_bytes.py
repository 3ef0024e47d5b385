"""The text itself as a row of numbers, for scorers that compare words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.errors import UsageError
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature

PARTS = ("prompt", "response")


class TextBytes(Extractor):
    """The UTF-8 bytes of a sample's text, each as one number, zeros after its end.

    A store contains rows of numbers of one width and no strings. Scaled to norm 1 and rounded to float16, bytes have an
    error below an eighth, so the text can be restored: see `scorers.bm25`. The model is not run.

    Args:
        parts: ``prompt``, ``response`` or both, joined by a newline.
        width: bytes of a row; longer texts are cut.

    Raises:
        UsageError: an unknown part, or a width below 1.
    """

    comparable = False  # equal words at different places have nothing in common
    fields = ("text",)

    def __init__(self, parts: Sequence[str] = PARTS, width: int = 4096) -> None:
        if not parts or not set(parts) <= set(PARTS):
            raise UsageError(f"extractor.parts must name some of {', '.join(PARTS)}, not {list(parts)}.")
        if width < 1:
            raise UsageError(f"extractor.width must be at least 1, not {width}.")
        self.parts = tuple(parts)
        self.width = width

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        rows = torch.zeros(len(batch), self.width)
        for row, pair in zip(rows, batch.text, strict=True):
            given = dict(zip(PARTS, pair, strict=True))
            data = as_bytes("\n".join(given[part] for part in self.parts))[: self.width]
            row[: len(data)] = data
        return {Key("text", 0, "text"): rows}


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode("utf-8", errors="replace")), dtype=torch.float32)
