"""LESS: training gradients as Adam's update directions, query gradients unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from extractors.gradients.optimizer_gradient import OptimizerGradient
from rept.model.optimizer_state import MOMENTS


def adam_direction(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Adam's next step for this gradient, without the learning rate: ``m / (sqrt(v) + eps)``.

    ``m = (b1 m_t + (1 - b1) g) / (1 - b1^(t+1))``, ``v = (b2 v_t + (1 - b2) g^2) / (1 - b2^(t+1))``.

    Args:
        gradient: (... M K).
        state: ``exp_avg`` and ``exp_avg_sq`` (M K), ``step``, ``betas`` and ``eps`` at the end of the training.
    """
    mean: Tensor = state[MOMENTS[0]].to(gradient)
    square: Tensor = state[MOMENTS[1]].to(gradient)
    (b1, b2), step = state["betas"], state["step"] + 1
    mean = (b1 * mean + (1 - b1) * gradient) / (1 - b1**step)
    square = (b2 * square + (1 - b2) * gradient.square()) / (1 - b2**step)
    eps: float = state["eps"]
    return mean / (square.sqrt() + eps)


class AdamGradient(OptimizerGradient):
    """LESS (Xia et al. 2024, arXiv 2402.04333), together with `scorers.cosine`.

    ``s(z, z') = cos(Gamma(z), grad L(z'))``: a training row is represented by the step that the optimizer would take
    for it, ``Gamma`` = `adam_direction`; a query by its gradient. Both are projected alike. The paper sums over several
    checkpoints, each with its learning rate; here there is one.
    """

    comparable = symmetric = False  # only the training side has Adam's directions
    correction = staticmethod(adam_direction)
