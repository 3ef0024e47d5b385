"""DataInf: influence functions in closed form, one weight at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rept.errors import UsageError
from scorers.base import Scorer, check_pair


class DataInf(Scorer):
    """``s(k, v) = v^T B g_k`` with ``B = 1/n sum_i (g_i g_i^T + lambda I)^-1`` (Kwon et al. 2024, arXiv 2310.00902).

    The influence function has the inverse of the mean, ``(1/n sum_i g_i g_i^T + lambda I)^-1``; DataInf takes the mean
    of the inverses, each of which Sherman and Morrison's formula gives:
    ``B = 1/lambda (I - 1/n sum_i g_i g_i^T / (lambda + |g_i|^2))``.

    ``lambda = damping * mean_i |g_i|^2 / D``, as in the paper. High scores lower the query's loss: it is the paper's
    influence with the opposite sign. Every weight is a site of its own (``extractor.each=true``); the mean over sites
    ranks like the paper's sum. Fit passes over the training rows twice and keeps a D x D matrix.

    Args:
        damping: above 0.

    Raises:
        UsageError: damping is out of its range.
    """

    needs = ("gradient",)
    inverse: Tensor  # B (D D), float64, once fitted

    def __init__(self, damping: float = 0.1) -> None:
        if damping <= 0:
            raise UsageError(f"Expected scorer.damping to be above 0, but got {damping}.")
        self.damping = damping

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        rows, total, width = 0, 0.0, 1
        for block in train:
            rows, width = rows + len(block["gradient"]), block["gradient"].shape[1]
            total += float(block["gradient"].double().square().sum())
        damping = self.damping * total / max(1, rows * width)
        seen, scatter = 0, torch.zeros(width, width, dtype=torch.float64)
        for block in train:
            gradient = block["gradient"].double()
            seen += len(gradient)
            weight = 1 / (damping + gradient.square().sum(1, keepdim=True)) if damping else 0
            scatter = scatter.to(gradient) + gradient.T @ (gradient * weight)
        if seen != rows:
            raise RuntimeError(f"Expected the {rows} training rows a second time, but got {seen}.")
        identity = torch.eye(width).to(scatter)
        self.inverse = (identity - scatter / max(1, rows)) / damping if damping else identity

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        gradient, queries = train["gradient"], query["gradient"]
        check_pair(gradient, queries)
        return (gradient.double() @ (queries.double() @ self.inverse).T).float()
