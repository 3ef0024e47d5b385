"""What fine-tuning changed: a signature less that of the model before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from extractors.sites.reader import SiteExtractor
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.loading import load_model, load_tokenizer
from rept.signatures import fingerprint
from rept.signatures.extractor import Extractor
from rept.types import Batch, Signature


class Contrastive(Extractor):
    """``s(model) - s(base)``, each field by itself, of any extractor that reads sites.

    A state holds what a text is about, which the base model, the one before fine-tuning, knew as well; what is left of
    the difference is what the training added. Both are read on the same tokens, and where parts of the model are named
    (``model.blocks`` and the like), the base's have the same names.

    Both models are held at once, in the same dtype and whole on the same device (on each one, where the model itself is
    split over several): twice the memory, and twice the time. A LoRA model is its own base with the adapter switched
    off, and takes no more memory. In half precision a difference below the states' own rounding is noise. Token scores
    are those of the fine-tuned model alone.

    Args:
        base: folder or hub id of the base model; null: the model's own, without its adapter.
        extractor: what is read out of both models.
        trust_remote_code: run code that comes with the base model.

    Raises:
        UsageError: the extractor reads no sites; when attached: no base model there, or one with another depth, width
            or vocabulary; when called: both models give the same.
    """

    def __init__(self, base: str | None, extractor: SiteExtractor, trust_remote_code: bool = False) -> None:
        if not isinstance(extractor, SiteExtractor):
            raise UsageError(
                f"extractor.extractor must be one that reads sites of the model, such as "
                f"extractors.sites.several_positions.SeveralPositions, not {type(extractor).__name__}."
            )
        self.base = base
        self.extractor = extractor
        self.trust_remote_code = trust_remote_code
        self.fields = extractor.fields
        self._model: nn.Module | None = None  # the base model

    def attach(self, model: nn.Module, tokenizer: Any) -> None:
        if self.base is None:
            if not hasattr(model, "disable_adapter"):
                raise UsageError(
                    "extractor.base is not set: name the model before fine-tuning by its folder or hub id; only a "
                    "model with an adapter brings its own."
                )
            return
        trust = {"trust_remote_code": self.trust_remote_code}
        self._model = load_model(self.base, dtype=str(model.dtype).removeprefix("torch."), **trust)
        parts = Architecture.of(model)
        for what, of_model, of_base in (
            ("layers", len(parts), len(Architecture.of(self._model, **parts.named))),
            ("numbers in a hidden state", _width(model), _width(self._model)),
        ):
            if of_model != of_base:
                raise UsageError(
                    f"extractor.base={self.base} is not the model before fine-tuning: it has {of_base} {what}, the "
                    f"model has {of_model}."
                )
        if load_tokenizer(self.base, **trust).get_vocab() != tokenizer.get_vocab():
            raise UsageError(
                f"extractor.base={self.base} has another vocabulary than the model, so it would read other tokens: "
                "name the model that was fine-tuned, with its tokenizer."
            )

    def content(self) -> Mapping[str, str]:
        return {} if self._model is None else {"base model": fingerprint.of_weights(self._model)}

    def __call__(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        before = self._before(model, batch, layers)
        changed = {key: block - before[key] for key, block in self.extractor(model, batch, layers).items()}
        if not any(block.any() for block in changed.values()):
            raise UsageError("Model and base model give the same signatures: set extractor.base to the one before it.")
        return changed

    def _before(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        """The base model's signature."""
        if self._model is not None:
            return self.extractor(self._model.to(batch.input_ids.device), batch, layers)
        if self.base is not None:
            raise UsageError("The base model is not loaded: call attach() with the model and its tokenizer first.")
        with model.disable_adapter():
            return self.extractor(model, batch, layers)

    def all_positions(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        """Those of the extractor, of the fine-tuned model alone."""
        return self.extractor.all_positions(model, batch, layers)


def _width(model: nn.Module) -> int:
    return model.config.get_text_config().hidden_size
