"""Mean and covariance of training rows that are seen block by block."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running mean, and with ``covariance`` scatter, of rows in float64; memory is that of a D x D matrix.

    Blocks are merged as in Chan, Golub, LeVeque (1979), which stays exact where the mean is far larger than the spread.
    """

    def __init__(self, covariance: bool = False) -> None:
        self.rows = 0
        self.mean = torch.zeros((), dtype=torch.float64)  # (D) once there are rows
        self._keep_scatter = covariance
        self._scatter: Tensor | None = None  # (D D) sum of (x - mean)(x - mean)^T

    def add(self, block: Tensor) -> None:
        """Adds rows (n D)."""
        if not len(block):
            return
        block = block.double()
        center = block.mean(0)
        before = self.mean if self.rows else torch.zeros_like(center)
        together = self.rows + len(block)
        step = center - before
        if self._keep_scatter:
            spread = block - center
            scatter = spread.T @ spread + torch.outer(step, step) * (self.rows * len(block) / together)
            self._scatter = scatter if self._scatter is None else self._scatter + scatter
        self.mean = before + step * (len(block) / together)
        self.rows = together

    @property
    def covariance(self) -> Tensor:
        """(D D), the scatter over the number of rows."""
        if self._scatter is None:
            raise RuntimeError("No rows were added, or the scatter was not kept: there is no covariance.")
        return self._scatter / self.rows


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """``(1 - s) C + s (tr C / D) I``, which has full rank. Ledoit and Wolf (2004), with a given s."""
    size = len(covariance)
    scale = covariance.diagonal().mean()
    return (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(size, dtype=covariance.dtype).to(covariance)
