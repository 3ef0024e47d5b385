"""What fine-tuning changed: the difference from the signature of the model before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from extractors.sites.reader import SiteExtractor
from rept.errors import UsageError
from rept.model.architecture import Architecture, peft_wrapper
from rept.model.loading import Dtype, load_model, load_tokenizer
from rept.signatures import fingerprint
from rept.signatures.extractor import Extractor
from rept.types import FIELDS, Batch, PreTrainedModel, PreTrainedTokenizerBase, Signature


class Contrastive(Extractor):
    """``s(model) - s(base)``, each field separately, of any extractor that reads sites.

    A state represents what a text is about, which the base model, the one before fine-tuning, represented as well; the
    difference is what the training added. Both models read the same tokens, and parts of the model that are named
    (``model.blocks``, ``model.final_norm``, ...) have the same names in the base model.

    Both models are in memory, in the same dtype and whole on the same device (on each device, if the model itself is
    split): this takes twice the memory and twice the time. A LoRA model is its own base with the adapter disabled, and
    takes no more memory. In half precision, a difference below the rounding of the states is noise. Token scores are
    those of the fine-tuned model alone.

    Args:
        base: folder or hub id of the base model; null: the model's own, without its adapter.
        extractor: what is read from both models.
        trust_remote_code: run code that comes with the base model.

    Raises:
        UsageError: the extractor reads no sites; when attached: there is no base model, or its depth, width or
            vocabulary differs; when called: both models give the same signatures.
    """

    def __init__(self, base: str | None, extractor: SiteExtractor, trust_remote_code: bool = False) -> None:
        if not isinstance(extractor, SiteExtractor):
            raise UsageError(
                "Expected extractor.extractor to read sites of the model, as "
                f"extractors.sites.several_sites.SeveralSites does, but got {type(extractor).__name__}."
            )
        self.base = base
        self.extractor = extractor
        self.trust_remote_code = trust_remote_code
        self.fields = extractor.fields
        self._model: PreTrainedModel | None = None  # the base model

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.base is None:
            if peft_wrapper(model) is None:
                raise UsageError(
                    "extractor.base is not set: name the model before fine-tuning by its folder or hub id; only a "
                    "model with an adapter is its own base."
                )
            return
        dtype = cast(Dtype, str(model.dtype).removeprefix("torch."))
        self._model = load_model(self.base, dtype=dtype, trust_remote_code=self.trust_remote_code)
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
        known = load_tokenizer(self.base, trust_remote_code=self.trust_remote_code).get_vocab()
        if known != tokenizer.get_vocab():
            raise UsageError(
                f"extractor.base={self.base} has another vocabulary than the model, so it would read other tokens: "
                "name the model that was fine-tuned, with its tokenizer."
            )

    def content(self) -> Mapping[str, str]:
        return {} if self._model is None else {"base model": fingerprint.of_weights(self._model)}

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        before = self._before(model, batch, layers)
        changed = {key: block - before[key] for key, block in self.extractor(model, batch, layers).items()}
        if not any(block.any() for block in changed.values()):
            raise UsageError("Model and base model give the same signatures: set extractor.base to the one before it.")
        return changed

    def _before(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        """The base model's signature."""
        if self._model is not None:
            nn.Module.to(self._model, batch.input_ids.device)  # Transformers' own `to` has no usable type
            return self.extractor(self._model, batch, layers)
        wrapper = peft_wrapper(model)
        if self.base is not None or wrapper is None:
            raise UsageError("The base model is not loaded: call attach() with the model and its tokenizer first.")
        with wrapper.disable_adapter():
            return self.extractor(model, batch, layers)

    def all_positions(
        self, model: PreTrainedModel, batch: Batch, layers: Sequence[int], fields: Sequence[str] = FIELDS
    ) -> Signature:
        """Those of the fine-tuned model."""
        return self.extractor.all_positions(model, batch, layers, fields)


def _width(model: PreTrainedModel) -> int:
    width: int = model.config.get_text_config().hidden_size
    return width
