"""Reads sites: modules of the model whose output and its gradient make up the signature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.hooks import Response, gradients_of, record, sample_losses
from rept.model.lm_head import logits_at
from rept.signatures.extractor import Extractor
from rept.types import Batch, Key, Signature

FIELDS = ("representation", "gradient")


Position = Literal["last_prompt", "response_mean", "text_mean"]


POSITIONS = get_args(Position)


class Site(NamedTuple):
    name: str
    layer: int


class SiteExtractor(Extractor):
    """Representation H and gradient dL/dH of sites, L being the sample's own mean loss over its response.

    However many sites and layers there are, they are read in one forward and one backward pass. A subclass says which
    modules of the model are its sites; :class:`SingleSite` is the base of those with one.

    Args:
        fields: any of ``representation`` and ``gradient``. Without ``gradient`` there is no backward pass.
        position: ``last_prompt`` reads both fields at the last prompt token, the position that predicts the first
            response token; ``response_mean`` averages them over all positions that predict a response token,
            ``text_mean`` over all positions of prompt and response.

    Raises:
        UsageError: unknown field or position.
    """

    def __init__(
        self,
        fields: Sequence[str] = FIELDS,
        position: Position = "last_prompt",
    ) -> None:
        self.fields = tuple(fields)
        self.position = position
        if not self.fields or not set(self.fields) <= set(FIELDS):
            raise UsageError(f"extractor.fields must name some of {', '.join(FIELDS)}, not {list(fields)}.")
        if position not in POSITIONS:
            raise UsageError(f"extractor.position must be one of {', '.join(POSITIONS)}, not {position!r}.")

    @abstractmethod
    def sites(self, model: nn.Module, layers: Sequence[int]) -> dict[Site, nn.Module]:
        """The modules whose outputs are read. Layer numbers in the result are resolved: -1 has become the last."""

    def __call__(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        response = Response.of(batch.labels)
        everywhere = self._everywhere(model, batch, response, layers, self.fields)
        return {key: at_position(block, batch, response, self.position) for key, block in everywhere.items()}

    def all_positions(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        """Both fields at all positions, each (B T D) in float32, whatever ``fields`` and ``position`` say."""
        everywhere = self._everywhere(model, batch, Response.of(batch.labels), layers, FIELDS)
        return {key: block.float() for key, block in everywhere.items()}

    def _everywhere(
        self, model: nn.Module, batch: Batch, response: Response, layers: Sequence[int], fields: Sequence[str]
    ) -> dict[Key, Tensor]:
        """The fields at all positions, each (B T D), in the model's dtype."""
        if model.training:
            raise UsageError("The model is in training mode, where dropout makes signatures random: call model.eval().")
        modules = self.sites(model, layers)
        shape = (*batch.input_ids.shape, -1)  # some MLPs see all positions of a batch as one list (OPT)
        if "gradient" not in fields:
            with torch.no_grad(), record(modules, gradients=False) as outputs:
                logits_at(model, batch.input_ids, response.position[:1])
            return _keyed({site: outputs[site] for site in modules}, "representation", shape)
        with torch.enable_grad():
            with record(modules) as outputs:
                losses = sample_losses(model, batch.input_ids, response)
            outputs = {site: outputs[site] for site in modules}  # as asked for, not as they ran
            gradients = dict(zip(outputs, gradients_of(losses, list(outputs.values())), strict=True))
        both = _keyed(outputs, "representation", shape) | _keyed(gradients, "gradient", shape)
        return {key: block for key, block in both.items() if key.field in fields}


class SingleSite(SiteExtractor):
    """One site; a subclass gives its name and the module that is this site at a layer."""

    name: str  # as in Key.site

    @abstractmethod
    def site(self, model: nn.Module, layer: int) -> nn.Module:
        """The module of ``model`` whose output is read at ``layer``, which is between 1 and the number of blocks."""

    def sites(self, model: nn.Module, layers: Sequence[int]) -> dict[Site, nn.Module]:
        numbers = [Architecture.of(model).layer(layer) for layer in layers]
        return {Site(self.name, layer): self.site(model, layer) for layer in numbers}


def _keyed(blocks: Mapping[Site, Tensor], field: str, shape: tuple[int, ...]) -> dict[Key, Tensor]:
    return {Key(site.name, site.layer, field): block.detach().reshape(shape) for site, block in blocks.items()}


def at_position(block: Tensor, batch: Batch, response: Response, position: Position) -> Tensor:
    """States of all positions (B T D) to one vector for each sample (B D), float32."""
    if position == "last_prompt":
        samples = torch.arange(len(block), device=block.device)
        return block[samples, batch.prompt_end.to(block.device)].float()
    if position == "response_mean":
        return response.mean(rearrange(block, "b t d -> (b t) d")[response.position.to(block.device)].float())
    return text_mean(block, batch)


def text_mean(block: Tensor, batch: Batch) -> Tensor:
    """States of all positions (B T D) to their mean over each sample's own tokens (B D), float32."""
    length = batch.length.to(block.device).unsqueeze(1)  # (B 1)
    real = torch.arange(block.shape[1], device=block.device) < length  # (B T)
    return torch.where(real.unsqueeze(2), block.float(), 0).sum(1) / length
