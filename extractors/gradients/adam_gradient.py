"""LESS: training gradients as Adam's update directions, query gradients unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.weights import Factors
from rept.errors import UsageError
from rept.model.optimizer_state import MOMENTS, load_optimizer_state
from rept.types import Batch, Signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def adam_direction(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Adam's next step for this gradient, without the learning rate: ``m / (sqrt(v) + eps)``.

    ``m = (b1 m_t + (1 - b1) g) / (1 - b1^(t+1))``, ``v = (b2 v_t + (1 - b2) g^2) / (1 - b2^(t+1))``.

    Args:
        gradient: (... M K).
        state: ``exp_avg`` and ``exp_avg_sq`` (M K), ``step``, ``betas`` and ``eps``, as the optimizer left them.
    """
    mean: Tensor = state[MOMENTS[0]].to(gradient)
    square: Tensor = state[MOMENTS[1]].to(gradient)
    (b1, b2), step = state["betas"], state["step"] + 1
    mean = (b1 * mean + (1 - b1) * gradient) / (1 - b1**step)
    square = (b2 * square + (1 - b2) * gradient.square()) / (1 - b2**step)
    eps: float = state["eps"]
    return mean / (square.sqrt() + eps)


class AdamGradient(ParameterGradient):
    """LESS (Xia et al. 2024, arXiv 2402.04333), together with `scorers.cosine`.

    ``s(z, z') = cos(Gamma(z), grad L(z'))``: a training row is represented by the step that the optimizer would take
    for it, ``Gamma`` = `adam_direction`; a query by its gradient. Both are projected alike. The paper sums over several
    checkpoints, each with its learning rate; here there is one.

    Adam's step is elementwise, so on the training side the whole gradient of one weight at a time is computed.

    Args:
        optimizer: folder with the optimizer's state, as `train.py` leaves it beside the model; null: the model's own.
        weights: as in `extractors.gradients.parameter_gradient`.
        dimension: likewise.
        seed: likewise.

    Raises:
        UsageError: when called: there is no optimizer state, or not that of the chosen weights.
    """

    comparable = False  # only the training side has Adam's directions

    def __init__(
        self, optimizer: str | None = None, weights: str = "auto", dimension: int | None = 8192, seed: int = 0
    ) -> None:
        super().__init__(weights, dimension, seed=seed)
        self.optimizer = optimizer
        self._state: Mapping[str, Mapping[str, Any]] = {}

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        if not self._state:
            self._state = _load(self.optimizer or str(model.name_or_path))
        return super().__call__(model, batch, layers)

    def project(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        if name not in self._state or not set(MOMENTS) <= set(self._state[name]):
            raise UsageError(
                f"The optimizer's state has nothing for {name}, so it was not trained; name the trained weights by "
                "extractor.weights."
            )
        if batch.side == "query":
            return super().project(name, factors, batch)
        shape = self._state[name]["exp_avg"].shape
        gradients = factors.whole()  # (B M K); K is 1 for biases and norms
        if gradients.shape[1:].numel() != shape.numel():
            raise UsageError(f"The optimizer's state of {name} has shape {tuple(shape)}: it belongs to another model.")
        moments = {moment: self._state[name][moment].view(gradients.shape[1:]) for moment in MOMENTS}
        steps = adam_direction(gradients, {**self._state[name], **moments})
        return steps.flatten(1) if self.projection is None else self.projection.of_matrices(name, steps)


def _load(folder: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        return load_optimizer_state(Path(folder).expanduser())
    except FileNotFoundError:
        raise UsageError(
            f"LESS needs the optimizer's state, but {folder} has no optimizer.safetensors: train the model with "
            "train.py, or name the folder by extractor.optimizer."
        ) from None
