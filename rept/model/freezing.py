"""Freezes a model: evaluation mode, and no gradients of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rept.errors import UsageError
from rept.model.splitting import own_name
from rept.types import PreTrainedModel


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Sets evaluation mode and turns off the parameters' gradients; returns the same model."""
    model.eval()
    model.requires_grad_(False)
    return model


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model into evaluation mode without gradients of its parameters; restores both at the end.

    Raises UsageError if it is no model, but its path for example.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"Expected the model to be a loaded model of Transformers, but got a {type(model).__name__}.")
    needed = {own_name(name): p.requires_grad for name, p in model.named_parameters()}
    was_training = model.training
    freeze(model)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed[own_name(name)])
        model.train(was_training)
