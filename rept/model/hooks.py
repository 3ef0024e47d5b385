"""One forward and one backward pass: outputs of chosen modules, the samples' losses, the outputs' gradients.

Parameters are frozen, so the graph starts at the first recorded output: nothing below it is kept for the backward pass,
and no parameter receives a gradient.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.lm_head import logits_at, losses_at
from rept.model.splitting import is_split
from rept.types import IGNORE, PreTrainedModel

Name = TypeVar("Name", bound=Hashable)

# Float16 represents nothing below 6e-8, and gradients of hidden states are often smaller, so the loss is scaled. Powers
# of two scale without rounding; the second is for the rare sample whose gradients overflow under the first.
_HALF_SCALES = (2.0**12, 1.0)


class _AllRecorded(Exception):
    """Ends a forward pass of which nothing more is needed."""


@dataclass(frozen=True)
class Response:
    """The positions of a batch that predict a response token, and their targets."""

    position: Tensor  # (n) index into the B * T positions of the batch, ascending
    sample: Tensor  # (n) the sample of each
    target: Tensor  # (n) the token to predict
    count: Tensor  # (B) response tokens of each sample

    @classmethod
    def of(cls, labels: Tensor) -> Response:
        """From labels (B T): a label at column t is predicted by the position t - 1."""
        samples, width = labels.shape
        sample, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        count = torch.bincount(sample, minlength=samples)
        return cls(sample * width + column, sample, labels[sample, column + 1], count)

    def mean(self, values: Tensor) -> Tensor:
        """The mean (B ...) over each sample's response of values (n ...), one for each position."""
        sample, count = self.sample.to(values.device), self.count.to(values.device)
        total = values.new_zeros(len(count), *values.shape[1:]).index_add(0, sample, values)
        return total / count.view(-1, *[1] * (values.ndim - 1))


@contextmanager
def record(
    modules: Mapping[Name, nn.Module], gradients: bool = True, stop: bool = False
) -> Iterator[dict[Name, Tensor]]:
    """Fills the yielded dictionary with each module's output, in the order in which they run.

    With ``gradients``, each output can be passed to :func:`gradients_of`: one that is in no graph yet becomes a leaf,
    and later ones depend on it. If a module returns a tuple, element 0 is its output. With ``stop``, the ``with`` block
    ends when all have run: nothing above the last of them is computed.

    Raises:
        UsageError: gradients in inference mode, where autograd records nothing.
        RuntimeError: a module did not run.
    """
    if gradients and torch.is_inference_mode_enabled():
        raise UsageError("Gradients cannot be read in inference mode: build the trainer with inference_mode=False.")
    outputs: dict[Name, Tensor] = {}

    def hook(name: Name, module: nn.Module, args: object, output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if not gradients:
            outputs[name] = hidden.detach().clone()  # some blocks change a sublayer's output in place (Falcon)
            if stop and len(outputs) == len(modules):
                raise _AllRecorded
            return None
        outputs[name] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        passed_on = outputs[name].clone()
        return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        with suppress(_AllRecorded):
            yield outputs
    missing = [str(name) for name in modules if name not in outputs]
    if missing:
        raise RuntimeError(f"These modules did not run in the forward pass: {', '.join(missing)}.")


def sample_losses(model: PreTrainedModel, input_ids: Tensor, response: Response) -> Tensor:
    """Returns each sample's own mean cross-entropy over its response tokens, (B) in float32 or float64.

    Input (B T) must be padded on the right: a causal model then needs no attention mask, so the fastest attention
    kernels can be used.
    """
    return response.mean(losses_at(model, input_ids, response.position, response.target))


def outputs_of(model: PreTrainedModel, input_ids: Tensor, modules: Mapping[Name, nn.Module]) -> dict[Name, Tensor]:
    """Returns each module's output for input (B T), in a forward pass that ends with the last of these modules.

    A model that is split over devices runs to its end, as a part that is left out would keep the other ranks waiting.
    """
    with torch.no_grad(), record(modules, gradients=False, stop=not is_split(model)) as outputs:
        logits_at(model, input_ids, torch.zeros(1, dtype=torch.int64, device=input_ids.device))
    return outputs


def gradients_of(losses: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients of each sample's own loss with respect to recorded outputs, of the outputs' shapes.

    One backward pass of the sum over the samples suffices: none depends on another, so each receives the gradient of
    its own loss. Float16 gradients are computed of a scaled loss and returned in float32, others in the outputs' dtype.
    """
    if not any(output.dtype == torch.float16 for output in outputs):
        return list(torch.autograd.grad(losses.sum(), outputs))
    for scale in _HALF_SCALES:
        scaled = torch.autograd.grad(losses.sum() * scale, outputs, retain_graph=scale != _HALF_SCALES[-1])
        if all(gradient.isfinite().all() for gradient in scaled):
            break
    return [gradient.float() / scale for gradient in scaled]
