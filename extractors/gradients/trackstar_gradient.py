"""TrackStar: gradients divided by the root of the optimizer's second moments, on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from extractors.gradients.optimizer_gradient import OptimizerGradient
from rept.model.optimizer_state import MOMENTS


def by_second_moment(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """``g / sqrt(V)``, where V is Adam's mean of squared gradients without its bias, ``v_t / (1 - b2^t)``.

    0 where V is 0, as for the embedding of a token that training never saw: nothing is known of its scale.

    Args:
        gradient: (... M K).
        state: ``exp_avg_sq`` (M K), ``step`` and ``betas`` at the end of the training.
    """
    square = state[MOMENTS[1]].to(gradient.device, torch.float64) / (1 - state["betas"][1] ** state["step"])
    scale = torch.where(square > 0, square.rsqrt(), 0)
    return (gradient.double() * scale).to(gradient.dtype)


class TrackStarGradient(OptimizerGradient):
    """TrackStar (Chang et al. 2024, arXiv 2410.17413), together with `scorers.cosine`.

    ``s(z, z') = cos(G(z), G(z'))`` with ``G(z) = P (grad L(z) / sqrt(V))``: V are the optimizer's second moments
    (`by_second_moment`), P is a random projection of each weight's gradient from both sides (`TwoSided`), and the
    cosine is the inner product of rows of norm 1.

    The paper multiplies G by ``R^(-1/2)`` before the norm, R being the second moment of G over training rows and task
    queries. `scorers.whitened` with ``centre=false`` does this with that of the training rows. V is Adam's where the
    paper has Adafactor's.
    """

    correction = staticmethod(by_second_moment)
