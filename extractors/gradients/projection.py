"""Seeded random projections of per-sample weight gradients, the same for every sample and device."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

from extractors.gradients.weights import Factors
from rept.errors import UsageError


@dataclass(eq=False)
class TwoSided:
    """Projects gradients ``G`` (M K) of any weight to ``A G B^T``, laid out as ``dimension`` numbers.

    A (a M) and B (b K) are Rademacher matrices with ``E[A^T A] = I``, so inner products are kept on average, and so are
    those of sums over several weights, whose matrices are drawn independently. As ``A (sum_t u_t v_t^T) B^T =
    sum_t (A u_t)(B v_t)^T``, the whole gradient is never computed: LoGra (Choe et al. 2024, arXiv 2405.13954). A side
    that is not longer than its share is not shortened, only multiplied by random signs.
    """

    dimension: int  # numbers of the result
    seed: int = 0  # of the matrices
    together: bool = True  # the results of several weights are added; otherwise that of a small weight stays short
    _known: dict[tuple[str, torch.device], tuple[Tensor, Tensor, int]] = field(init=False, default_factory=dict)

    def of_factors(self, weight: str, factors: Factors) -> Tensor:
        """(B dimension) from gradients that are sums of outer products."""
        a, b, shift = self._matrices(weight, factors.left.shape[1], factors.right.shape[1], factors.left.device)
        sides = Factors(factors.left @ a.T, factors.right @ b.T, factors.count)
        return self._lay_out(sides.whole(), shift)

    def of_matrices(self, weight: str, gradients: Tensor) -> Tensor:
        """(B dimension) from whole gradients (B M K)."""
        a, b, shift = self._matrices(weight, gradients.shape[1], gradients.shape[2], gradients.device)
        return self._lay_out(a @ gradients @ b.T, shift)

    def _matrices(self, weight: str, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
        if (weight, device) not in self._known:
            generator = seeded(self.seed, weight)
            a = min(rows, isqrt(self.dimension))
            b = min(columns, self.dimension // a)
            a = min(rows, self.dimension // b)
            left, right = (signs(short, long, generator).to(device) for short, long in ((a, rows), (b, columns)))
            # Small weights fill only the first numbers, so they are shifted to use different ones.
            shift = int(torch.randint(self.dimension, (1,), generator=generator))
            self._known[weight, device] = (left, right, shift)
        return self._known[weight, device]

    def _lay_out(self, projected: Tensor, shift: int) -> Tensor:
        flat = projected.flatten(1)
        if not self.together:
            return flat
        return pad(flat, (0, self.dimension - flat.shape[1])).roll(shift, dims=1)


def projection_to(dimension: int | None, seed: int, together: bool = True) -> TwoSided | None:
    """Returns the projection of an extractor with that ``dimension``; raises UsageError if it is below 1."""
    if dimension is not None and dimension < 1:
        raise UsageError(f"extractor.dimension must be at least 1, or null, not {dimension}.")
    return None if dimension is None else TwoSided(dimension, seed, together)


def seeded(seed: int, name: str) -> torch.Generator:
    """A generator that depends on nothing but its seed and purpose."""
    mixed = blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed))


def signs(short: int, long: int, generator: torch.Generator) -> Tensor:
    """A Rademacher matrix (short long) over sqrt(short); if it would not shorten, a diagonal of signs."""
    if short == long:
        return torch.diag(torch.randint(2, (long,), generator=generator) * 2.0 - 1)
    matrix: Tensor = (torch.randint(2, (short, long), generator=generator) * 2.0 - 1) / short**0.5
    return matrix
