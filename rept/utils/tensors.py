"""Scaling of rows to norm 1."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_and_norm(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (... D) scaled to norm 1, and their norms (... 1), both in float64: squares of small gradients underflow.

    A zero row stays zero.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
    return rows / norm.clamp_min(torch.finfo(torch.float64).tiny), norm


def unit(rows: Tensor) -> Tensor:
    """Rows (... D) scaled to norm 1, in their own dtype; see `unit_and_norm`."""
    return unit_and_norm(rows)[0].to(rows.dtype)
