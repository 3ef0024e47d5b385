"""Logits and losses at chosen positions only.

A batch's logits are its largest tensor by far (positions times vocabulary). So only the positions that are asked for
reach the output layer, and where that layer is the model's last step and learns nothing, they pass it in chunks whose
logits are turned into losses and their gradients on the spot.
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import cross_entropy, linear

CHUNK_LOGITS = 2**21  # logits of a chunk: 8 MiB in float32 stay in a processor's cache,
CHUNK_ROWS = 256  # but fewer rows than this leave the matrix product slow, whatever the vocabulary


def logits_at(model: nn.Module, input_ids: Tensor, position: Tensor) -> Tensor:
    """Logits (n V) at ``position`` (n), indices into the B * T positions of ``input_ids`` (B T).

    The output layer is shown these positions alone, so that whatever the architecture does to its logits still applies.
    An output layer that does not allow it is left to compute all positions.
    """
    samples, width = input_ids.shape

    def choose(module: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].shape[:2] != (samples, width):
            return None
        return (_rows(args[0], position).unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    if logits.shape[:2] == (1, len(position)):
        return logits[0]
    return logits.reshape(samples * width, -1)[position.to(logits.device)]


# Models whose losses must be taken from the logits that they return: they do something to them after the output layer
# (Gemma 2 caps, Cohere and Granite scale), or their output layer's weight is not at hand (sharded, offloaded).
_NEEDS_LOGITS: WeakSet[nn.Module] = WeakSet()


def losses_at(model: nn.Module, input_ids: Tensor, position: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (n) of ``target`` (n) at ``position`` (n), in float32; arguments as in :func:`logits_at`."""
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
    model: nn.Module, head: nn.Linear, input_ids: Tensor, position: Tensor, target: Tensor
) -> Tensor | None:
    """The losses (n), computed within the output layer; None where the model's logits are not its plain output.

    The layer itself is shown one position. What the model returns for it tells whether anything came after.
    """
    losses: list[Tensor] = []
    shown: list[Tensor] = []

    # Before the layer runs, not after: there a sharded weight is whole.
    def compute(module: nn.Linear, args: tuple) -> tuple | None:
        if not args or args[0].shape[:2] != input_ids.shape or not _plain(module.weight, args[0]):
            return None
        hidden = _rows(args[0], position)
        losses.append(_RowLosses.apply(hidden, module.weight, module.bias, target.to(hidden.device)))
        return (hidden[None, :1], *args[1:])

    handles = [
        head.register_forward_pre_hook(compute),
        head.register_forward_hook(lambda module, args, output: shown.append(output)),
    ]
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return losses[0] if losses and _same(logits, shown[0]) else None


class _RowLosses(torch.autograd.Function):
    """Cross-entropy (n) of a linear output layer on hidden states (n D), with its gradient computed along the way.

    For one row, ``dL/dhidden = (softmax(logits) - onehot(target)) W``. A loss beyond what a probability in float32 can
    express, 87 nats, reads as 87; its gradient is exact.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        size = max(CHUNK_ROWS, CHUNK_LOGITS // len(weight))
        losses, slopes = [], []
        for rows, targets in zip(hidden.split(size), target.unsqueeze(1).split(size), strict=True):
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
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * upstream.unsqueeze(1)).to(slopes.dtype), None, None, None


def _rows(hidden: Tensor, position: Tensor) -> Tensor:
    return rearrange(hidden, "b t d -> (b t) d").index_select(0, position.to(hidden.device))


def _same(logits: Tensor, shown: Tensor) -> bool:
    """Whether nothing was done to an output but a change of dtype; a NaN is a NaN."""
    if logits.shape != shown.shape:
        return False
    return torch.allclose(logits, shown.to(logits.dtype), rtol=0, atol=0, equal_nan=True)


def _plain(weight: Tensor, hidden: Tensor) -> bool:
    """Whether ``weight`` is a whole tensor that multiplies ``hidden`` as it is."""
    return type(weight.data) is Tensor and not weight.is_meta and weight.dtype == hidden.dtype
