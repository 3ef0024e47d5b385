"""A weighted mean of the two blocks' cosines, so that neither block dominates by its norm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rept.errors import UsageError
from scorers.base import Scorer
from scorers.cosine import cosine


def block_cosine(h: Tensor, g: Tensor, h_query: Tensor, g_query: Tensor, alpha: float) -> Tensor:
    """``s = alpha cos(h, h') + (1 - alpha) cos(g, g')``, a cosine being 0 where one of its two vectors is zero.

    Args:
        h, g: representation and gradient (N D) of training rows; the two may differ in width.
        h_query, g_query: the same (Q D) of queries.
        alpha: weight of the representation, from 0 to 1.

    Returns:
        (N Q), from -1 to 1.

    Raises:
        ValueError: the blocks are not matrices of one width.

    Example:
        >>> import torch
        >>> h, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> h_query, g_query = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -1.0]])
        >>> block_cosine(h, g, h_query, g_query, alpha=0.5)
        tensor([[-0.2000]])
    """
    return alpha * cosine([h], [h_query]) + (1 - alpha) * cosine([g], [g_query])


class BlockCosine(Scorer):
    """`block_cosine`.

    Args:
        alpha: weight of the representation, from 0 to 1.

    Raises:
        UsageError: alpha is out of its range.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise UsageError(f"Expected scorer.alpha to be between 0 and 1, but got {alpha}.")
        self.alpha = alpha

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        return block_cosine(
            train["representation"], train["gradient"], query["representation"], query["gradient"], self.alpha
        )
