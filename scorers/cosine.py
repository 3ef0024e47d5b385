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
    return _products(train, _scaled(query))


def _scaled(query: Sequence[Tensor]) -> list[Tensor]:
    """Queries times their inverse norm: before the product, as that of two small gradients would underflow."""
    inverse = _inverse_norm(query)
    return [y * inverse for y in query]


def _products(train: Sequence[Tensor], scaled: Sequence[Tensor]) -> Tensor:
    for x, y in zip(train, scaled, strict=True):
        check_pair(x, y)
    scale = _inverse_norm(train)  # before the product, which evicts the rows from the processor's cache
    return reduce(Tensor.add_, map(product, train, scaled)).mul_(scale)


def _inverse_norm(blocks: Sequence[Tensor]) -> Tensor:
    """``1 / |x|`` (N 1) of concatenated rows x; 0 for zero rows, so that they score 0."""
    norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in blocks])
    low, high = (end.item() for end in norms.aminmax()) if norms.numel() else (1, 1)
    if not 1e-15 < low <= high < 1e15:  # a square might have left the range of float32
        norms = torch.stack([torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in blocks])
    inverse = norms.double().square().sum(0).rsqrt().nan_to_num(posinf=0)
    return inverse.clamp(max=torch.finfo(blocks[0].dtype).max).to(blocks[0].dtype)[:, None]


class Cosine(Scorer):
    """`cosine` of the concatenated fields: the score of arXiv 2510.02334.

    Where one block's norm is far above the other's (usually the representation's), it alone decides the score.
    ``fields=["representation"]`` is the baseline Rep-Sim.
    """

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self.needs = tuple(fields)
        self._asked: tuple[Mapping[str, Tensor] | None, list[Tensor]] = None, []  # the last queries, and them scaled

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        if self._asked[0] is not query:
            self._asked = query, _scaled([query[field] for field in self.needs])
        return _products([train[field] for field in self.needs], self._asked[1])

    def vectors(self, fields: Mapping[str, Tensor]) -> Tensor:
        blocks = [fields[field] for field in self.needs]
        return torch.cat(blocks, dim=1) * _inverse_norm(blocks)
