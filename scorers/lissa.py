"""LiSSA: influence functions by a recursion towards the inverse Hessian's product with the query's gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rept.errors import UsageError
from scorers.base import Scorer, check_pair


class LiSSA(Scorer):
    """``s(k, v) = r_J . g_k`` with ``r_j = v + (I - H / sigma) r_(j-1)``, ``r_0 = v``, over sigma.

    For J to infinity ``r_J / sigma = H^-1 v`` (Agarwal, Bullins, Hazan 2017, arXiv 1602.03943; Koh and Liang 2017,
    arXiv 1703.04730). ``H = 1/n sum_i g_i g_i^T + lambda I``, the Gauss-Newton form that arXiv 2310.00902 compares
    with, over all training rows instead of a sample; ``lambda = damping * mean_i |g_i|^2 / D``; sigma is H's largest
    eigenvalue, for which the recursion always converges. High scores lower the query's loss. Every weight is a site of
    its own (``extractor.each=true``), as in `scorers.datainf`. Fit keeps a D x D matrix.

    Args:
        damping: above 0.
        iterations: J; 10 in arXiv 2310.00902.

    Raises:
        UsageError: a setting is out of its range.
    """

    needs = ("gradient",)
    step: Tensor  # I - H / sigma (D D), float64, once fitted

    def __init__(self, damping: float = 0.1, iterations: int = 10) -> None:
        if damping <= 0 or iterations < 0:
            raise UsageError(
                f"Expected scorer.damping above 0 and scorer.iterations >= 0, but got {damping} and {iterations}."
            )
        self.damping, self.iterations = damping, iterations
        self.sigma = 1.0

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        rows, scatter = 0, torch.zeros(1, 1, dtype=torch.float64)
        for block in train:
            gradient = block["gradient"].double()
            rows += len(gradient)
            scatter = scatter.to(gradient) + gradient.T @ gradient
        hessian = scatter / max(1, rows)
        identity = torch.eye(len(hessian)).to(hessian)
        hessian = hessian + self.damping * hessian.diagonal().mean() * identity
        self.sigma = float(torch.linalg.eigvalsh(hessian)[-1]) or 1.0
        self.step = identity - hessian / self.sigma

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        gradient, queries = train["gradient"], query["gradient"].double()
        check_pair(gradient, queries)
        product = queries
        for _ in range(self.iterations):
            product = queries + product @ self.step
        return (gradient.double() @ (product / self.sigma).T).float()
