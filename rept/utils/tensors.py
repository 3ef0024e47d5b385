"""Scaling of rows to norm 1, and inner products of rows."""

from __future__ import annotations

import numpy as np
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


def unit_rows(block: Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows (n D) scaled to norm 1 in ``dtype``, float16 or float32, and their norms (n) in float32.

    Gradients are small (1e-4 and below): half precision would lose them unless they were scaled first. A zero row gives
    zeros and norm 0.

    Raises:
        ValueError: a value is not finite.
    """
    unit, norm = unit_and_norm(block.detach().to("cpu", torch.float64))
    norm = norm.squeeze(-1).float()
    if not norm.isfinite().all():
        raise ValueError("expected finite signatures for rows that are attributed, but got NaN or infinite values")
    return unit.numpy().astype(dtype), norm.numpy()


def product(x: Tensor, y: Tensor) -> Tensor:
    """Inner products (N Q) of rows (N D) with rows (Q D), in their dtype."""
    plain = x.device.type == "cpu" and x.dtype == y.dtype == torch.float32 and y.numel()
    if plain and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch has no types here
        # oneDNN: on AMD processors more than twice as fast as the library behind torch's own product. By the operation
        # of torch's compiler, since `linear` copies what it takes and gives.
        scores: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
        return scores
    return x @ y.T
