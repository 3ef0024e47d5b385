"""LESS: training gradients as the optimizer would take them, query gradients as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.weights import Factors
from rept.errors import UsageError
from rept.model.optimizer_state import MOMENTS, load_optimizer_state
from rept.types import Batch, Signature


def adam_direction(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Adam's next step, without the learning rate, if this gradient came next: ``m / (sqrt(v) + eps)``.

    ``m = (b1 m_t + (1 - b1) g) / (1 - b1^(t+1))``, ``v = (b2 v_t + (1 - b2) g^2) / (1 - b2^(t+1))``.

    Args:
        gradient: (... M K).
        state: ``exp_avg`` and ``exp_avg_sq`` (M K), ``step``, ``betas`` and ``eps``, as the optimizer left them.
    """
    mean, square = (state[moment].to(gradient) for moment in MOMENTS)
    (b1, b2), step = state["betas"], state["step"] + 1
    mean = (b1 * mean + (1 - b1) * gradient) / (1 - b1**step)
    square = (b2 * square + (1 - b2) * gradient.square()) / (1 - b2**step)
    return mean / (square.sqrt() + state["eps"])


class AdamGradient(ParameterGradient):
    """LESS (Xia et al. 2024, arXiv 2402.04333), together with `scorers.cosine`.

    ``s(z, z') = cos(Gamma(z), grad L(z'))``: a training row counts by the step that the optimizer would take for it,
    ``Gamma`` = `adam_direction`; a query by its plain gradient. Both are projected alike. The paper sums over several
    checkpoints, each with its learning rate; here it is the one at hand.

    Adam's step is taken number by number, so on the training side one weight's gradient at a time is whole.

    Args:
        optimizer: folder with the optimizer's state, as `train.py` leaves it beside the model; null: the model's own.
        weights: as in `extractors.gradients.parameter_gradient`.
        dimension: likewise.
        seed: likewise.

    Raises:
        UsageError: when called: no optimizer state there, or not that of the weights that are meant.
    """

    def __init__(
        self, optimizer: str | None = None, weights: str = "auto", dimension: int | None = 8192, seed: int = 0
    ) -> None:
        super().__init__(weights, dimension, seed=seed)
        self.optimizer = optimizer
        self._state: Mapping[str, Mapping[str, Any]] = {}

    comparable = False  # directions of Adam on the training side alone

    def __call__(self, model: nn.Module, batch: Batch, layers: list[int]) -> Signature:
        if not self._state:
            self._state = self._load(self.optimizer or model.name_or_path)
        return super().__call__(model, batch, layers)

    def project(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        if name not in self._state or not set(MOMENTS) <= set(self._state[name]):
            raise UsageError(
                f"The optimizer's state has none of {name}: it was not trained; name the weights that were by "
                "extractor.weights."
            )
        if batch.side == "query":
            return super().project(name, factors, batch)
        shape = self._state[name]["exp_avg"].shape
        gradients = factors.whole()  # (B M K); K is 1 for biases and norms
        if gradients.shape[1:].numel() != shape.numel():
            raise UsageError(f"The optimizer's state of {name} has shape {tuple(shape)}: it is that of another model.")
        state = {**self._state[name], **{m: self._state[name][m].view(gradients.shape[1:]) for m in MOMENTS}}
        steps = adam_direction(gradients, state)
        return steps.flatten(1) if self.projection is None else self.projection.of_matrices(name, steps)

    @staticmethod
    def _load(folder: str) -> Mapping[str, Mapping[str, Any]]:
        try:
            return load_optimizer_state(Path(folder).expanduser())
        except FileNotFoundError:
            raise UsageError(
                f"LESS needs the optimizer's state, but {folder} has no optimizer.safetensors: train the model with "
                "train.py, or name the folder by extractor.optimizer."
            ) from None
