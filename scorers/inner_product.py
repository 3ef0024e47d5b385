"""The inner product of two signatures: as the cosine, but rows of large norm count more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rept.types import FIELDS
from scorers.base import Scorer, check_pair


def inner_product(train: Sequence[Tensor], query: Sequence[Tensor]) -> Tensor:
    """Inner product of concatenated blocks, without concatenating them: ``s(x, y) = sum_b x_b . y_b``.

    Args:
        train: blocks (N D), of any width each.
        query: the same blocks (Q D).

    Returns:
        (N Q).

    Raises:
        ValueError: the blocks are not matrices of one width.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[4.0], [2.0]])
        >>> y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5]])
        >>> inner_product(x, y)
        tensor([[5.],
                [2.]])
    """
    for x, y in zip(train, query, strict=True):
        check_pair(x, y)
    return torch.stack([x @ y.T for x, y in zip(train, query, strict=True)]).sum(0)


class InnerProduct(Scorer):
    """`inner_product` of the concatenated fields."""

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self.needs = tuple(fields)

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        return inner_product([train[field] for field in self.needs], [query[field] for field in self.needs])

    def vectors(self, fields: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([fields[field] for field in self.needs], dim=1)
