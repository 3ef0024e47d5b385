"""Masks single tokens of a prompt, and measures what the model no longer predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rept.data.padding import batch_slices
from rept.model.lm_head import losses_at
from rept.model.placement import input_device
from rept.types import PreTrainedModel


@dataclass(frozen=True)
class Maskable:
    """A text, which of its tokens to mask, and which predictions to watch."""

    input_ids: Tensor  # (T)
    weights: Tensor  # (T) of each token's log-probability; 0 at the first token
    positions: list[int]


def masking_effects(
    model: PreTrainedModel, texts: Sequence[Maskable], fill: Tensor, tokens_per_batch: int
) -> list[Tensor]:
    """Returns for each text, at each of its positions, ``sum_t w_t (log p_t - log p_t with this token masked)``.

    A masked token has the embedding ``fill`` (E). Copies of all texts run together, sorted by length into batches of
    at most ``tokens_per_batch`` tokens. A copy ends before the last token with a weight, as a causal model needs no
    more to predict it. A text without weights has no effects: zeros.
    """
    ends = [int(text.weights.nonzero().max()) if text.weights.any() else 0 for text in texts]
    copies = [
        (ends[number], number, position)
        for number, text in enumerate(texts)
        if ends[number]
        for position in (-1, *text.positions)  # -1: nothing is masked
    ]
    copies.sort()
    found: dict[tuple[int, int], Tensor] = {}
    for one in batch_slices([end for end, *_ in copies], tokens_per_batch):
        batch = copies[one]
        if batch:
            losses = _losses(model, [texts[number] for _, number, _ in batch], batch, fill)
            found |= {copy[1:]: loss for copy, loss in zip(batch, losses, strict=True)}
    return [
        torch.stack([found[number, position] - found[number, -1] for position in text.positions])
        if ends[number] and text.positions
        else torch.zeros(len(text.positions))
        for number, text in enumerate(texts)
    ]


@torch.no_grad()
def _losses(
    model: PreTrainedModel, texts: Sequence[Maskable], copies: Sequence[tuple[int, int, int]], fill: Tensor
) -> Tensor:
    """The weighted loss (B) of each copy: (length, number of the text, masked position)."""
    masked = [(row, position) for row, (*_, position) in enumerate(copies) if position >= 0]

    def mask(module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows, columns = (list(one) for one in zip(*masked, strict=True))
        changed = output.clone()
        changed[rows, columns] = fill.to(output)
        return changed

    input_ids = pad_sequence([text.input_ids[:end] for text, (end, *_) in zip(texts, copies, strict=True)], True)
    weights = pad_sequence([text.weights[1 : end + 1] for text, (end, *_) in zip(texts, copies, strict=True)], True)
    targets = pad_sequence([text.input_ids[1 : end + 1] for text, (end, *_) in zip(texts, copies, strict=True)], True)
    watched = weights.flatten().nonzero().squeeze(1)
    device = input_device(model)
    hook = model.get_input_embeddings().register_forward_hook(mask) if masked else None
    try:
        losses = losses_at(model, input_ids.to(device), watched.to(device), targets.flatten()[watched].to(device))
    finally:
        if hook:
            hook.remove()
    each = torch.zeros(weights.numel())
    each[watched] = losses.float().cpu()
    return (each.view_as(weights) * weights).sum(1)
