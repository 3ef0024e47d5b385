"""One forward and one backward pass: outputs of chosen modules, the samples' losses, the outputs' gradients.

Model parameters take no part: with frozen parameters the first recorded output of a pass starts the graph, so nothing
below it is kept for the backward pass, and no parameter receives a gradient.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.lm_head import losses_at
from rept.types import IGNORE

Name = TypeVar("Name", bound=Hashable)

# Half precision holds nothing below 6e-8, and gradients of hidden states are often smaller. Powers of two scale without
# rounding; the second is for the rare sample whose gradients overflow under the first.
_HALF_SCALES = (2.0**12, 1.0)


@dataclass(frozen=True)
class Response:
    """The positions of a batch that predict a response token, and what they should predict.

    Attributes:
        position: (n) index into the B * T positions of the batch, ascending.
        sample: (n) the sample each belongs to.
        target: (n) the token to predict.
        count: (B) response tokens of each sample.
    """

    position: Tensor
    sample: Tensor
    target: Tensor
    count: Tensor

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
def record(modules: Mapping[Name, nn.Module], gradients: bool = True) -> Iterator[dict[Name, Tensor]]:
    """Fills the yielded dictionary with each module's output, in the order in which they run.

    With ``gradients``, each output can be handed to :func:`gradients_of`: one that hangs on no graph yet becomes a
    leaf, later ones are nodes above it. Where a module returns a tuple, element 0 is its output.

    Raises:
        UsageError: gradients are asked for in inference mode, where autograd records nothing.
        RuntimeError: a module did not run.
    """
    if gradients and torch.is_inference_mode_enabled():
        raise UsageError("Gradients cannot be read in inference mode: build the trainer with inference_mode=False.")
    outputs: dict[Name, Tensor] = {}

    def hook_of(name: Name):
        def hook(module: nn.Module, args: object, output: Tensor | tuple) -> Tensor | tuple | None:
            hidden = output[0] if isinstance(output, tuple) else output
            if not gradients:
                # Some blocks add to a sublayer's output in place (Falcon), so what is kept must be a copy.
                outputs[name] = hidden.detach().clone()
                return None
            outputs[name] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
            passed_on = outputs[name].clone()
            return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on

        return hook

    handles = []
    try:
        handles += [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
    missing = [str(name) for name in modules if name not in outputs]
    if missing:
        raise RuntimeError(f"These modules did not run in the forward pass: {', '.join(missing)}.")


def sample_losses(model: nn.Module, input_ids: Tensor, response: Response) -> Tensor:
    """Each sample's own mean cross-entropy over its response tokens, (B) in float32.

    Input (B T) must be padded on the right: a causal model then needs no attention mask, which leaves the fastest
    attention kernels free.
    """
    return response.mean(losses_at(model, input_ids, response.position, response.target))


def gradients_of(losses: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of each sample's own loss with respect to recorded outputs, each of its output's shape.

    One backward pass from the sum over the samples: none sees another, so each receives the gradient of its own loss.
    Float16 gradients are computed of a scaled loss and returned in float32, others in the outputs' dtype.
    """
    if not any(output.dtype == torch.float16 for output in outputs):
        return list(torch.autograd.grad(losses.sum(), outputs))
    for scale in _HALF_SCALES:
        scaled = torch.autograd.grad(losses.sum() * scale, outputs, retain_graph=scale != _HALF_SCALES[-1])
        if all(gradient.isfinite().all() for gradient in scaled):
            break
    return [gradient.float() / scale for gradient in scaled]
