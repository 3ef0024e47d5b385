"""Gradients of weights that the state of the optimizer corrects element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.weights import Factors
from rept.errors import UsageError
from rept.model.optimizer_state import MOMENTS, load_optimizer_state
from rept.types import Batch, PreTrainedModel, Signature

Correction = Callable[[Tensor, Mapping[str, Any]], Tensor]  # of gradients (... M K), by the state of their weight


class OptimizerGradient(ParameterGradient):
    """Base of extractors that correct gradients by the state of the optimizer that `train.py` saves.

    A subclass sets :attr:`correction`. It is elementwise, so the whole gradient of one weight at a time is computed.

    Args:
        optimizer: folder with the optimizer's state, which `train.py` saves beside the model; null: the model's folder.
        weights, dimension, seed: as in `extractors.gradients.parameter_gradient`.

    Raises:
        UsageError: when called: there is no optimizer state, or not that of the chosen weights.
    """

    correction: Correction  # on the query side too if the extractor is symmetric

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
        state = self._state.get(name, {})
        if not set(MOMENTS) <= state.keys():
            raise UsageError(
                f"The optimizer's state has nothing for {name}, so it was not trained; name the trained weights by "
                "extractor.weights."
            )
        if batch.side == "query" and not self.symmetric:
            return super().project(name, factors, batch)
        shape = state["exp_avg"].shape
        gradients = factors.whole()  # (B M K); K is 1 for biases and norms
        if gradients.shape[1:].numel() != shape.numel():
            raise UsageError(f"The optimizer's state of {name} has shape {tuple(shape)}: it belongs to another model.")
        moments = {moment: state[moment].view(gradients.shape[1:]) for moment in MOMENTS}
        steps = self.correction(gradients, {**state, **moments})
        return steps.flatten(1) if self.projection is None else self.projection.of_matrices(name, steps)


def _load(folder: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        return load_optimizer_state(Path(folder).expanduser())
    except FileNotFoundError:
        raise UsageError(
            f"This extractor needs the optimizer's state, but {folder} has no optimizer.safetensors: train the model "
            "with train.py, or name the folder by extractor.optimizer."
        ) from None
