"""Groups rows into batches and pads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.types import IGNORE


def batch_slices(lengths: Sequence[int], tokens_per_batch: int) -> list[slice]:
    """Cuts rows, whose ``lengths`` in tokens ascend, into batches; without rows, there is one empty batch.

    A batch takes as many rows as fit in ``tokens_per_batch`` tokens, padding included, and at least one.
    """
    found, first = [], 0
    for i, length in enumerate(lengths):
        # Lengths ascend, so this row is the longest of its batch.
        if i > first and (i + 1 - first) * length > tokens_per_batch:
            found.append(slice(first, i))
            first = i
    return [*found, slice(first, len(lengths))]


def padded(rows: Sequence[tuple[Tensor, Tensor]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns ``input_ids`` and ``labels`` of a :class:`rept.types.Batch`, each (B T), with T the longest of B rows.

    Args:
        rows: the tokens (T) of each row, and which of them (T, bool) are the response's.
        pad_id: the token that fills rows up on the right.
    """
    longest = max((len(ids) for ids, _ in rows), default=0)
    input_ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full_like(input_ids, IGNORE)
    for i, (ids, response) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        labels[i, : len(ids)][response] = ids[response].to(labels.dtype)
    return input_ids, labels
