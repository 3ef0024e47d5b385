"""Each sample's own gradient of chosen weights, from one forward and one backward pass over a batch.

The gradient of a linear layer's weight is a sum over positions of an outer product, ``sum_t u_t v_t^T`` with u the
gradient of the layer's output and v its input. Hooks record both, so no weight needs a gradient, and the sum is only
computed if needed: see :class:`Factors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from rept.errors import UsageError
from rept.model.hooks import Response, gradients_of, record, sample_losses
from rept.model.lm_head import logits_at
from rept.model.splitting import own_name
from rept.types import Batch, PreTrainedModel


@dataclass(frozen=True)
class Factors:
    """The gradient of one weight (M K) for each of B samples, as a sum of outer products of rows of two matrices."""

    left: Tensor  # (n M) float32
    right: Tensor  # (n K)
    count: tuple[int, ...]  # number of rows of each sample, in order; their sum is n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each sample's left and right rows."""
        count = list(self.count)
        return iter(zip(torch.split(self.left, count), torch.split(self.right, count), strict=True))

    def whole(self) -> Tensor:
        """The gradients (B M K)."""
        return torch.stack([left.T @ right for left, right in self])

    def norms(self) -> Tensor:
        """Their Frobenius norms (B): ``|sum_t u_t v_t^T|^2 = sum_{s t} (u_s . u_t) (v_s . v_t)``."""
        return torch.stack([((left @ left.T) * (right @ right.T)).sum().clamp_min(0).sqrt() for left, right in self])


class Seen(NamedTuple):
    """What a module computed with in the forward pass."""

    input: Tensor
    vectors: dict[str, Tensor]  # its parameters of one dimension, which are only whole while a split model runs


class Use(NamedTuple):
    """One use of a weight by a module; a tied weight has two."""

    weight: str  # name of the parameter
    attribute: str  # its name in the module: weight or bias
    module: str  # name of the module


def choose_weights(model: PreTrainedModel, weights: str) -> list[str]:
    """Returns names of parameters, in the model's order.

    Args:
        weights: ``lora`` for an adapter's, ``all``, ``auto`` for the adapter's if there is one and otherwise all, or a
            regular expression that is searched in the names.

    Raises:
        UsageError: no parameter is chosen, or the regular expression is invalid.
    """
    names = [own_name(name) for name, _ in model.named_parameters()]
    adapter = [name for name in names if "lora_" in name]
    if weights in ("all", "auto"):
        return adapter if weights == "auto" and adapter else names
    if weights == "lora":
        if not adapter:
            raise UsageError("extractor.weights=lora: the model has no LoRA weights; give an adapter by model.adapter.")
        return adapter
    try:
        chosen = [name for name in names if re.search(weights, name)]
    except re.error as error:
        raise UsageError(f"extractor.weights={weights} is not a regular expression: {error}.") from None
    if not chosen:
        raise UsageError(f"extractor.weights={weights} matches none of the model's weights, such as {names[0]}.")
    return chosen


def gradient_factors(model: PreTrainedModel, batch: Batch, weights: Sequence[str]) -> dict[str, Factors]:
    """Returns for each weight the gradient of each sample's own mean loss over its response.

    Raises:
        UsageError: a weight whose gradient cannot be separated by sample, such as that of a mixture's expert.
    """
    response = Response.of(batch.labels)
    uses = _uses(model, weights)
    modules = {use.module: model.get_submodule(use.module) for use in uses}
    with torch.enable_grad():
        with _inputs(modules) as inputs, record(modules) as outputs:
            if any(module is model.get_output_embeddings() for module in modules.values()):
                logits = logits_at(model, batch.input_ids, response.position).float()
                losses = response.mean(cross_entropy(logits, response.target.to(logits.device), reduction="none"))
            else:
                losses = sample_losses(model, batch.input_ids, response)
        slopes = dict(zip(outputs, gradients_of(losses, list(outputs.values())), strict=True))
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in weights}
    for use in uses:
        parts[use.weight].append(_outer(modules[use.module], use, inputs[use.module], slopes[use.module], response))
    return {name: _together(found, len(batch)) for name, found in parts.items()}


def _uses(model: nn.Module, weights: Sequence[str]) -> list[Use]:
    names = {parameter: own_name(name) for name, parameter in model.named_parameters()}
    wanted = set(weights)
    return [
        Use(names[parameter], attribute, own_name(module_name))
        for module_name, module in model.named_modules()
        for attribute, parameter in module.named_parameters(recurse=False)
        if names[parameter] in wanted
    ]


@contextmanager
def _inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Fills the yielded dictionary with each module's input. Raises UsageError if one runs twice in a pass."""
    seen: dict[str, Seen] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if name in seen:
            raise UsageError(f"{name} runs twice in a pass: leave its weights out by extractor.weights.")
        own = module.named_parameters(recurse=False)
        seen[name] = Seen(args[0].detach(), {key: one.detach().clone() for key, one in own if one.ndim == 1})

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        yield seen


def _outer(
    module: nn.Module, use: Use, before: Seen, slope: Tensor, response: Response
) -> tuple[Tensor, Tensor, Tensor]:
    """Left rows (n M), right rows (n K) and the sample (n) of each, for one use of a weight."""
    samples, seen = len(response.count), before.input
    slopes = slope.flatten(0, -2).float()  # (n out)
    if isinstance(module, nn.Embedding):
        if type(module).forward is not nn.Embedding.forward and not hasattr(module, "embed_scale"):
            raise UsageError(_CANNOT.format(weight=use.weight, kind=type(module).__name__))  # an unknown lookup
        tokens = seen.flatten()
        left = one_hot(tokens, module.num_embeddings).float()
        if module.padding_idx is not None:
            left[tokens == module.padding_idx] = 0  # PyTorch gives it no gradient either
        scale = float(getattr(module, "embed_scale", 1))  # Gemma multiplies its embeddings
        return left, slopes * scale, _sample_of(use, len(left), response, len(slopes))
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        sample = _sample_of(use, len(slopes), response)
        if use.attribute == "bias":
            return slopes, slopes.new_ones(len(slopes), 1), sample
        pair = slopes, seen.flatten(0, -2).float()
        return (*(pair if isinstance(module, nn.Linear) else pair[::-1]), sample)
    if use.attribute not in before.vectors or seen.ndim < 2 or seen.numel() % samples or seen.shape != slope.shape:
        raise UsageError(_CANNOT.format(weight=use.weight, kind=type(module).__name__))
    rows = [part.reshape(samples, -1, seen.shape[-1]) for part in (seen, slope)]  # norms act on each position
    left = torch.stack([_slope_of(module, before.vectors, use.attribute, x, y) for x, y in zip(*rows, strict=True)])
    return left, left.new_ones(samples, 1), torch.arange(samples, device=left.device)


def _slope_of(module: nn.Module, vectors: Mapping[str, Tensor], attribute: str, seen: Tensor, slope: Tensor) -> Tensor:
    """The gradient of a norm's weight or bias for one sample, by autograd through this module only."""
    own = {name: vector.detach().float() for name, vector in vectors.items()}
    leaf = own[attribute].requires_grad_()
    with torch.enable_grad():
        output = functional_call(module, own, (seen.float(),))
    return torch.autograd.grad(output, leaf, slope.to(output.dtype))[0]


_CANNOT = (
    "The gradient of {weight} (of a {kind}) cannot be computed for each sample; those of linear layers, embeddings and "
    "norms can: name the weights by extractor.weights, as a regular expression."
)


def _sample_of(use: Use, rows: int, response: Response, others: int | None = None) -> Tensor:
    """The sample of each row: of all positions, or of those that predict a response."""
    samples = len(response.count)
    if others is None or others == rows:
        if rows == len(response.sample):
            return response.sample
        if rows % samples == 0 and rows >= response.position.max() + 1:
            return torch.arange(samples, device=response.sample.device).repeat_interleave(rows // samples)
    raise UsageError(_CANNOT.format(weight=use.weight, kind="module whose input does not separate the samples"))


def _together(parts: list[tuple[Tensor, Tensor, Tensor]], samples: int) -> Factors:
    """All uses of one weight as one sum, in the order of the samples."""
    if len(parts) == 1:  # already in this order
        left, right, sample = parts[0]
    else:
        left, right, sample = (torch.cat([part[i].to(parts[0][i].device) for part in parts]) for i in range(3))
        order = sample.argsort(stable=True)
        left, right = left[order.to(left.device)], right[order.to(right.device)]
    return Factors(left, right, tuple(torch.bincount(sample, minlength=samples).tolist()))
