"""Rows as directions."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    """Rows (n D) scaled to norm 1; zero rows stay zero. In float64 on the way: squares of small gradients underflow."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return torch.where(norm > 0, rows / norm, 0).to(rows.dtype)
