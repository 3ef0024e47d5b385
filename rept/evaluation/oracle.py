"""The method as a slow loop over single samples, written from the paper (arXiv 2510.02334). Fast paths must equal it.

It shares nothing with :mod:`rept.model.hooks`: no batch, no padding, full logits, and gradients computed another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.signatures.extractor import Position
from rept.types import IGNORE, Batch, PreTrainedModel


class States(NamedTuple):
    """One sample at one site and layer."""

    representation: Tensor  # (T D)
    gradient: Tensor  # (T D), of the sample's own mean loss over its response


def samples(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields each sample's (input_ids (T), labels (T)) without padding."""
    for i in range(len(batch)):
        length = int(batch.length[i])
        yield batch.input_ids[i, :length], batch.labels[i, :length]


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy over the response, from logits (T V) and labels (T)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.stack([-logits[t - 1].log_softmax(-1)[labels[t]] for t in _response(labels)]).mean()


def mean_target_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean logit of the response tokens: what the loss's gradient is without the terms that cancel it."""
    return torch.stack([logits[t - 1, labels[t]] for t in _response(labels)]).mean()


def states(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    layer: int,
    site: str | nn.Module = "residual_stream",
    loss: Callable[[Tensor, Tensor], Tensor] = mean_loss,
) -> States:
    """H and dL/dH at all positions of one sample.

    The residual stream is read from Transformers' ``hidden_states``. At another site, zeros are added to the module's
    output, and the gradient with respect to the zeros is the gradient with respect to the output.

    Args:
        site: ``residual_stream``, the name of another site of `Architecture`, or the module itself.
        loss: of logits (T V) and labels (T).
    """
    architecture = Architecture.of(model)
    with torch.enable_grad():
        if site == "residual_stream":
            # Parameters are frozen, so the graph starts at the embeddings: at a clone, because some models change them
            # in place, which a leaf does not allow.
            embedded = model.get_input_embeddings()(input_ids[None]).detach().requires_grad_().clone()
            output = model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
            hidden = leaf = output.hidden_states[architecture.layer(layer)]
            logits = output.logits[0]
        else:
            module = site if isinstance(site, nn.Module) else getattr(architecture, site)(layer)
            hidden, leaf, logits = _add_zeros(model, module, input_ids)
        scale = 2.0**12 if leaf.dtype == torch.float16 else 1.0  # or small gradients would underflow
        (gradient,) = torch.autograd.grad(loss(logits, labels) * scale, leaf)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
    length = len(input_ids)  # some MLPs see all positions of a batch as one list (OPT)
    return States(hidden.detach().reshape(length, -1), gradient.reshape(length, -1))


def _add_zeros(model: PreTrainedModel, module: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A module's output, zeros that were added to it, and the model's logits (T V)."""
    seen: list[Tensor] = []
    zeros: list[Tensor] = []

    def add(module: nn.Module, args: object, output: Any) -> Any:
        first: Tensor = output[0] if isinstance(output, tuple) else output
        seen.append(first.detach().clone())
        zeros.append(torch.zeros_like(first).requires_grad_())
        return (first + zeros[-1], *output[1:]) if isinstance(output, tuple) else first + zeros[-1]

    with module.register_forward_hook(add):
        logits: Tensor = model(input_ids=input_ids[None], use_cache=False).logits[0]
    if len(seen) != 1:
        raise UsageError(f"Expected {type(module).__name__} to run once in a forward pass, but got {len(seen)} runs.")
    return seen[0], zeros[0], logits


def signature(sample: States, labels: Tensor, position: Position = "last_prompt") -> States:
    """Each field (D): at the position that predicts the first response token, or a mean over positions."""
    columns = [column - 1 for column in _response(labels)]
    if position == "last_prompt":
        columns = columns[:1]
    elif position == "text_mean":
        columns = list(range(len(labels)))
    return States(sample.representation[columns].mean(0), sample.gradient[columns].mean(0))


def _response(labels: Tensor) -> list[int]:
    return [column for column, label in enumerate(labels.tolist()) if label != IGNORE]
