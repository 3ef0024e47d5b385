"""Logits and losses at chosen positions only.

A batch's logits are by far its largest tensor (positions x vocabulary). So only the chosen positions reach the output
layer, and if that layer is the model's last step and its weights are frozen, they pass it in chunks whose logits are
turned into losses and gradients at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn.functional import cross_entropy, linear

from rept.types import PreTrainedModel

CHUNK_LOGITS = 2**21  # logits of a chunk: 8 MiB in float32 fit in a processor's cache,
CHUNK_ROWS = 256  # but with fewer rows than this the matrix product is slow, whatever the vocabulary

# Models whose losses must be computed from the logits that they return, because they change them after the output layer
# (Gemma 2 caps, Cohere and Granite scale), or the layer's weight is not available as a whole (sharded, offloaded).
_NEEDS_LOGITS: WeakSet[nn.Module] = WeakSet()


def logits_at(model: PreTrainedModel, input_ids: Tensor, position: Tensor) -> Tensor:
    """Returns the logits (n V) at ``position`` (n), indices into the B * T positions of ``input_ids`` (B T).

    Only these positions are passed to the output layer, so anything that the architecture does to its logits still
    applies. An output layer that cannot be hooked computes all positions.
    """

    def choose(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != input_ids.shape:
            return None
        return (_rows(args[0], position)[None], *args[1:])

    head = model.get_output_embeddings()
    with head.register_forward_pre_hook(choose) if head is not None else nullcontext():
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits[0] if logits.shape[:2] == (1, len(position)) else _rows(logits, position)


def losses_at(model: PreTrainedModel, input_ids: Tensor, position: Tensor, target: Tensor) -> Tensor:
    """Returns the cross-entropy (n) of ``target`` (n) at ``position`` (n), in float32 or float64, as in `logits_at`."""
    head = model.get_output_embeddings()
    learns = torch.is_grad_enabled() and head is not None and any(p.requires_grad for p in head.parameters())
    if type(head) is nn.Linear and not learns and model not in _NEEDS_LOGITS:
        losses = _losses_within(model, head, input_ids, position, target)
        if losses is not None:
            return losses
        _NEEDS_LOGITS.add(model)
    logits = logits_at(model, input_ids, position)
    single = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(single, target.to(logits.device), reduction="none")


def _losses_within(
    model: PreTrainedModel, head: nn.Linear, input_ids: Tensor, position: Tensor, target: Tensor
) -> Tensor | None:
    """The losses (n), computed inside the output layer; None if the model's logits are not that layer's plain output.

    The layer itself then computes one position, and what the model returns for it shows whether anything came after.
    """
    losses: list[Tensor] = []
    outputs: list[Tensor] = []

    def compute(module: nn.Linear, args: tuple[Any, ...]) -> tuple[Any, ...] | None:  # runs while weights are gathered
        if not args or args[0].shape[:2] != input_ids.shape or not _is_plain(module.weight, args[0]):
            return None
        hidden = _rows(args[0], position)
        losses.append(_row_losses(hidden, module.weight, module.bias, target.to(hidden.device)))
        return (hidden[None, :1], *args[1:])

    keep = head.register_forward_hook(lambda module, args, output: outputs.append(output))
    with head.register_forward_pre_hook(compute), keep:
        logits = model(input_ids=input_ids, use_cache=False).logits
    return losses[0] if losses and _equal(logits, outputs[0]) else None


class _RowLosses(torch.autograd.Function):
    """Cross-entropy (n) of a linear output layer on hidden states (n D), whose gradient the forward pass computes.

    For one row, ``dL/dhidden = (softmax(logits) - onehot(target)) W``. Losses above 87 nats, where the probability is
    below the smallest normal float32, are returned as 87; their gradient is exact.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        size = max(CHUNK_ROWS, CHUNK_LOGITS // len(weight))
        losses, slopes = [], []
        for rows, targets in zip(torch.split(hidden, size), torch.split(target.unsqueeze(1), size), strict=True):
            logits = linear(rows, weight, bias)
            probability = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            chance = probability.gather(1, targets)
            losses.append(-chance.clamp_min(torch.finfo(torch.float32).tiny).log().squeeze(1))
            probability.scatter_(1, targets, chance - 1)
            slopes.append(probability.to(rows.dtype) @ weight)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * upstream.unsqueeze(1)).to(slopes.dtype), None, None, None


_row_losses: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor] = _RowLosses.apply


def _rows(states: Tensor, position: Tensor) -> Tensor:
    """Rows (n D) at ``position`` of states (B T D)."""
    return states.flatten(0, 1).index_select(0, position.to(states.device))


def _equal(logits: Tensor, output: Tensor) -> bool:
    """Whether the logits are an output in another dtype at most; NaN equals NaN."""
    return logits.shape == output.shape and torch.allclose(
        logits, output.to(logits.dtype), rtol=0, atol=0, equal_nan=True
    )


def _is_plain(weight: Tensor, hidden: Tensor) -> bool:
    """Whether ``weight`` is a whole tensor that is multiplied by ``hidden`` without a cast."""
    return type(weight.data) is Tensor and not weight.is_meta and weight.dtype == hidden.dtype
