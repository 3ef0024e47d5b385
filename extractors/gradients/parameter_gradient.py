"""Gradients of weights, one for each sample, as TracIn and related methods compare them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from extractors.gradients.projection import projection_to
from extractors.gradients.weights import Factors, choose_weights, gradient_factors
from rept.errors import UsageError
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, PreTrainedModel, Signature


class ParameterGradient(Extractor):
    """The gradient of each sample's own mean loss with respect to chosen weights, randomly projected.

    With `scorers.inner_product` it is TracIn with a single checkpoint (Pruthi et al. 2020, arXiv 2002.08484); with
    ``normalize``, TracIn with layer-normalized gradients, where weights with large gradients do not dominate. The
    chosen layers have no effect: ``weights`` names weights of the whole depth.

    Args:
        weights: ``auto`` (LoRA weights if the model has some, else all), ``lora``, ``all``, or a regular expression
            that is searched in the parameters' names.
        dimension: numbers of a projected gradient, see `extractors.gradients.projection`; null: no projection.
        normalize: each weight's gradient is scaled to norm 1.
        each: every weight is one site, instead of their sum; for scorers that treat weights separately.
        seed: of the projection.

    Raises:
        UsageError: ``dimension`` is below 1; when called, weights that the model does not have, or whose gradient
            cannot be separated by sample.
    """

    fields = ("gradient",)

    def __init__(
        self,
        weights: str = "auto",
        dimension: int | None = 8192,
        normalize: bool = False,
        each: bool = False,
        seed: int = 0,
    ) -> None:
        self.weights = weights
        self.normalize = normalize
        self.each = each
        self.projection = projection_to(dimension, seed, together=not each)

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        if model.training:
            raise UsageError("The model is in training mode, where dropout makes signatures random: call model.eval().")
        factors = gradient_factors(model, batch, self.choose(model))
        blocks = {name: self._block(name, factors.pop(name), batch) for name in list(factors)}
        if self.each:
            return {Key(name, 0, "gradient"): block for name, block in blocks.items()}
        together = list(blocks.values())
        moved = [block.to(together[0].device) for block in together]
        joined = torch.cat(moved, dim=1) if self.projection is None else torch.stack(moved).sum(0)
        return {Key("parameters", 0, "gradient"): joined}

    def choose(self, model: PreTrainedModel) -> list[str]:
        """Returns the names of the weights that are read."""
        return choose_weights(model, self.weights)

    def _block(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        """One weight's share of the signature (B D)."""
        block = self.project(name, factors, batch)
        if not self.normalize:
            return block
        norm = factors.norms().unsqueeze(1)
        return torch.where(norm > 0, block / norm, 0)

    def project(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        """One weight's gradients, projected (B dimension), or without projection flat (B M * K)."""
        return factors.whole().flatten(1) if self.projection is None else self.projection.of_factors(name, factors)
