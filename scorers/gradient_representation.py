"""The normalized gradient-representation product: high where both blocks agree with the query's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from scorers.base import Scorer
from scorers.cosine import cosine


def gradient_representation(h: Tensor, g: Tensor, h_query: Tensor, g_query: Tensor) -> Tensor:
    """``s = cos(g, g') cos(h, h')``, and 0 where any of them is zero.

    This is the cosine of the rank-one matrices ``g h^T`` and ``g' h'^T``, for their inner product is
    ``tr(h g^T g' h'^T) = (g . g') (h . h')``. A linear layer read at one position has just this gradient (h its input,
    g the gradient of its output), so it is the form that TracIn (arXiv 2002.08484) takes there, normalized.

    Args:
        h, g: representation and gradient (N D) of training rows; the two may differ in width.
        h_query, g_query: the same (Q D) of queries.

    Returns:
        (N Q), from -1 to 1.

    Raises:
        ValueError: the blocks are not matrices of one width.

    Example:
        >>> import torch
        >>> h, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> h_query, g_query = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -1.0]])
        >>> gradient_representation(h, g, h_query, g_query)
        tensor([[-0.6000]])
    """
    return cosine([g], [g_query]) * cosine([h], [h_query])


class GradientRepresentation(Scorer):
    """`gradient_representation`, which does not depend on the norms of the blocks."""

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        return gradient_representation(
            train["representation"], train["gradient"], query["representation"], query["gradient"]
        )
