"""Reads sites: modules of the model whose output and its gradient make up the signature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.hooks import Response, gradients_of, outputs_of, record, sample_losses
from rept.signatures.extractor import POSITIONS, Extractor, Position, Reading, Site
from rept.types import FIELDS, Batch, Key, PreTrainedModel, Signature

SITES: dict[str, type[SingleSite]] = {}  # by name; every subclass of SingleSite with a name is entered


class SiteExtractor(Extractor):
    """Representation H and gradient dL/dH of sites, L being the sample's own mean loss over its response.

    All sites and layers are read in one forward and one backward pass. A subclass says which modules of the model are
    its sites; :class:`SingleSite` is the base of those with one.

    Args:
        fields: any of ``representation`` and ``gradient``. Without ``gradient`` there is no backward pass.
        position: ``last_prompt`` reads at the last prompt token, which predicts the first response token;
            ``response_mean`` averages over all positions that predict a response token, ``text_mean`` over all of
            prompt and response. A list of them gives fields named ``FIELD_POSITION``.

    Raises:
        UsageError: unknown field or position.
    """

    def __init__(self, fields: Sequence[str] = FIELDS, position: Position | Sequence[Position] = "last_prompt") -> None:
        _check("fields", fields, FIELDS)
        if isinstance(position, str):
            _check("position", [position], POSITIONS)
            self._readings = {field: Reading(field, position) for field in fields}
        else:
            _check("position", position, POSITIONS)
            self._readings = {f"{field}_{one}": Reading(field, one) for field in fields for one in position}
        self.fields = tuple(self._readings)
        self.position = position

    @property
    def readings(self) -> Mapping[str, Reading]:
        return self._readings

    @abstractmethod
    def sites(self, model: PreTrainedModel, layers: Sequence[int]) -> dict[Site, nn.Module]:
        """Returns the modules whose outputs are read, with -1 resolved to the number of the last layer."""

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        quantities = [reading.quantity for reading in self.readings.values()]
        response = Response.of(batch.labels)
        return {
            key._replace(field=field): at_position(block, batch, response, position)
            for key, block in self.everywhere(model, batch, response, layers, quantities).items()
            for field, (quantity, position) in self.readings.items()
            if quantity == key.field
        }

    def all_positions(
        self, model: PreTrainedModel, batch: Batch, layers: Sequence[int], fields: Sequence[str] = FIELDS
    ) -> Signature:
        """These fields at all positions, each (B T D) in float32, whatever the extractor's own are."""
        blocks = self.everywhere(model, batch, Response.of(batch.labels), layers, fields)
        return {key: block.float() for key, block in blocks.items()}

    def everywhere(
        self,
        model: PreTrainedModel,
        batch: Batch,
        response: Response,
        layers: Sequence[int],
        quantities: Sequence[str],
    ) -> dict[Key, Tensor]:
        """Representations, gradients or both at all positions, each (B T D) in the model's dtype."""
        if model.training:
            raise UsageError("The model is in training mode, where dropout makes signatures random: call model.eval().")
        modules = self.sites(model, layers)
        if "gradient" in quantities:
            with torch.enable_grad():
                with record(modules) as outputs:
                    losses = sample_losses(model, batch.input_ids, response)
                gradients = gradients_of(losses, list(outputs.values()))
            found = {"representation": outputs, "gradient": dict(zip(outputs, gradients, strict=True))}
        else:
            found = {"representation": outputs_of(model, batch.input_ids, modules)}
        shape = (*batch.input_ids.shape, -1)  # the MLPs of some models see all positions of a batch as one list (OPT)
        return {
            Key(site.name, site.layer, quantity): blocks[site].detach().reshape(shape)
            for quantity, blocks in found.items()
            if quantity in quantities
            for site in modules  # in the order of the request, not in which they ran
        }


class SingleSite(SiteExtractor):
    """One site. A subclass defines its name, which is entered in `SITES`, and its module at a layer.

    Defining one with the name of another class raises UsageError.
    """

    name: str  # as in Key.site

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            known = SITES.setdefault(cls.name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UsageError(
                    f"Expected {cls.__qualname__}.name to be new, but {cls.name!r} is the name of "
                    f"{known.__module__}.{known.__qualname__}: choose another."
                )
            SITES[cls.name] = cls  # a class that is defined again, as in a notebook, replaces itself

    @abstractmethod
    def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """Returns the module whose output is read at ``layer``, which is between 1 and the number of blocks."""

    def sites(self, model: PreTrainedModel, layers: Sequence[int]) -> dict[Site, nn.Module]:
        numbers = [Architecture.of(model).layer(layer) for layer in layers]
        return {Site(self.name, layer): self.site(model, layer) for layer in numbers}


def at_position(block: Tensor, batch: Batch, response: Response, position: Position) -> Tensor:
    """States of all positions (B T D) to one vector for each sample (B D), float32."""
    if position == "last_prompt":
        samples = torch.arange(len(block), device=block.device)
        return block[samples, batch.prompt_end.to(block.device)].float()
    if position == "response_mean":
        return response.mean(block.flatten(0, 1)[response.position.to(block.device)].float())
    return text_mean(block, batch)


def text_mean(block: Tensor, batch: Batch) -> Tensor:
    """States of all positions (B T D) to their mean over each sample's own tokens (B D), float32."""
    length = batch.length.to(block.device).unsqueeze(1)  # (B 1)
    real = torch.arange(block.shape[1], device=block.device) < length  # (B T)
    return torch.where(real.unsqueeze(2), block.float(), 0).sum(1) / length


def _check(setting: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or not set(given) <= set(known):
        raise UsageError(f"Expected extractor.{setting} to name some of {', '.join(known)}, but got {list(given)}.")
