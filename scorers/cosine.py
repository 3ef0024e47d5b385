"""The cosine of two signatures: the published score. With one field it is that field's own cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from rept.types import FIELDS
from rept.utils.tensors import product
from scorers.base import Scorer, check_pair


def cosine(train: Sequence[Tensor], query: Sequence[Tensor]) -> Tensor:
    """Cosine of concatenated blocks, without concatenating them.

    ``s(x, y) = (sum_b x_b . y_b) / (|x| |y|)`` with ``|x|^2 = sum_b |x_b|^2``, and 0 where x or y is zero.

    Args:
        train: blocks (N D), of any width each.
        query: the same blocks (Q D).

    Returns:
        (N Q), from -1 to 1.

    Raises:
        ValueError: the blocks are not matrices of one width.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[4.0], [0.0]])
        >>> y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])
        >>> cosine(x, y)
        tensor([[0.6000],
                [0.0000]])
    """
    for x, y in zip(train, query, strict=True):
        check_pair(x, y)
    inverse = _inverse_norm(query)  # before the product: that of two small gradients would underflow
    scale = _inverse_norm(train)  # before the product too, which evicts the rows from the processor's cache
    return reduce(torch.add, (product(x, y * inverse) for x, y in zip(train, query, strict=True))).mul_(scale)


def _inverse_norm(blocks: Sequence[Tensor]) -> Tensor:
    """``1 / |x|`` (N 1) of concatenated rows x; 0 for zero rows, so that they score 0."""
    square = reduce(torch.add, [_norm(x).double().square() for x in blocks])
    inverse = torch.where(square > 0, square.rsqrt(), 0)
    return inverse.clamp(max=torch.finfo(blocks[0].dtype).max).to(blocks[0].dtype)


def _norm(x: Tensor) -> Tensor:
    """Norms (N 1) of rows (N D), in float64 where a square might leave the range of float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if x.numel() and not 1e-15 < norm.min() <= norm.max() < 1e15:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    return norm


class Cosine(Scorer):
    """`cosine` of the concatenated fields: the score of arXiv 2510.02334.

    Where one block's norm is far above the other's (usually the representation's), it alone decides the score.
    ``fields=["representation"]`` is the baseline Rep-Sim.
    """

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self.needs = tuple(fields)

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        return cosine([train[field] for field in self.needs], [query[field] for field in self.needs])

    def vectors(self, fields: Mapping[str, Tensor]) -> Tensor:
        blocks = [fields[field] for field in self.needs]
        return torch.cat(blocks, dim=1) * _inverse_norm(blocks)
