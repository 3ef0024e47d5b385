"""How rows become batches: which go together, and how their tokens lie side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.types import IGNORE


def cut(lengths: Sequence[int], budget: int) -> list[slice]:
    """Batches of consecutive rows, each of as many as fit in ``budget`` tokens, padding included, and of one at least.

    Args:
        lengths: tokens of each row, ascending.

    Returns:
        The rows of each batch; where there is no row, one batch of none.
    """
    found, first = [], 0
    for i, length in enumerate(lengths):
        # Ascending lengths: the newcomer is the longest of its batch.
        if i > first and (i + 1 - first) * length > budget:
            found.append(slice(first, i))
            first = i
    return [*found, slice(first, len(lengths))]


def padded(rows: Sequence[tuple[Tensor, int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``labels`` of a `rept.types.Batch`, each (B T), T being the longest of B rows.

    Args:
        rows: the tokens of each, and how many of them stand before the response.
        pad_id: what fills up on the right.
    """
    longest = max((len(ids) for ids, _ in rows), default=0)
    input_ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full_like(input_ids, IGNORE)
    for i, (ids, prompt_length) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        labels[i, prompt_length : len(ids)] = ids[prompt_length:]
    return input_ids, labels
