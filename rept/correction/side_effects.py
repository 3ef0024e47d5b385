"""What a correction does to the predictions of a model: to chosen tokens, and to the next token in general."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rept.correction.correction import Correction
from rept.correction.evidence import Rows
from rept.correction.repair import corrected
from rept.model.hooks import Response
from rept.model.lm_head import logits_at
from rept.model.placement import input_device
from rept.types import Batch, PreTrainedModel


def response_log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Returns the log-probabilities of the next token (n V) at the positions that predict the batch's responses."""
    return log_probabilities(model, batch.input_ids, Response.of(batch.labels).position)


def log_probabilities(model: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Returns the next token's log-probabilities (n V), on the CPU, at ``positions`` (n) of B * T, right padded."""
    with torch.no_grad():
        return differentiable_log_probabilities(model, input_ids, positions).cpu()


def differentiable_log_probabilities(model: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Returns the same on the model's device, with gradients where they are enabled."""
    device = input_device(model)
    logits = logits_at(model, input_ids.to(device), positions.to(device))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """Returns KL(base || other) in nats (n), from log-probabilities (n V); never below 0."""
    return (base.exp() * (base - other)).sum(-1).clamp_min(0.0)


def corrected_divergence(
    model: PreTrainedModel, corrections: Sequence[Correction], asked: Batch, answered: Batch
) -> Tensor:
    """Returns KL(p(. | answered) || p_corrected(. | asked)) in nats (n) at the positions that predict the responses.

    Both batches have the same responses. The corrections receive gradients where they are enabled. The uncorrected
    model is run each time, as its log-probabilities would fill the memory if those of many batches were kept.
    """
    before, after = response_log_probabilities(model, answered), corrected_log_probabilities(model, corrections, asked)
    return divergence(before.to(after.device), after)


def corrected_log_probabilities(model: PreTrainedModel, corrections: Sequence[Correction], batch: Batch) -> Tensor:
    """Returns the next token's log-probabilities (n V), under corrections, at the positions that predict responses.

    The corrections receive gradients where they are enabled.
    """
    with corrected(model, corrections):
        return differentiable_log_probabilities(model, batch.input_ids, Response.of(batch.labels).position)


def culprit_probabilities(model: PreTrainedModel, rows: Rows) -> list[Tensor]:
    """Returns the log-probabilities (m) of each row's m tokens of culprit words, given all that stands before each.

    Rows without culprit words are left out.
    """
    found: list[Tensor] = []
    for batch in rows.batches:
        with torch.no_grad():
            sample, of_token = _of_culprit_words(model, rows, batch)
        found += torch.split(of_token.cpu(), torch.unique_consecutive(sample, return_counts=True)[1].tolist())
    return found


def unlikelihood(model: PreTrainedModel, corrections: Sequence[Correction], rows: Rows, batch: Batch) -> Tensor:
    """Returns the mean of -log(1 - p) over the tokens of culprit words in a batch of the rows; 0 if it has none.

    Source: Welleck et al., arXiv 1908.04319.
    """
    of_token = culprit_log_probabilities(model, corrections, rows, batch)
    return -torch.log1p(-of_token.exp().clamp_max(1 - 1e-6)).sum() / max(1, len(of_token))


def culprit_log_probabilities(
    model: PreTrainedModel, corrections: Sequence[Correction], rows: Rows, batch: Batch
) -> Tensor:
    """Returns the log-probabilities (n) of all tokens of culprit words in a batch of the rows, under corrections.

    The corrections receive gradients where they are enabled.
    """
    with corrected(model, corrections):
        return _of_culprit_words(model, rows, batch)[1]


def open_at(model: PreTrainedModel, corrections: Sequence[Correction], batch: Batch) -> Tensor:
    """Returns at which tokens of a batch the gate of some correction is open (B T) bool, never in padding."""
    with torch.no_grad(), corrected(model, corrections, watching=True) as hooks:
        model(input_ids=batch.input_ids.to(input_device(model)), use_cache=False, logits_to_keep=1)
    opened = torch.stack([hook.opened.cpu() for hook in hooks if hook.opened is not None]).any(0)
    return opened & (torch.arange(opened.shape[1]) < batch.length[:, None])


def _of_culprit_words(model: PreTrainedModel, rows: Rows, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sample of each token of culprit words in a batch (n), and the token's log-probability (n)."""
    columns = [(i, column) for i, of_row in enumerate(rows.targets(batch)) for column in of_row]
    sample, column = torch.tensor(columns, dtype=torch.int64).reshape(-1, 2).T
    if not columns:
        return sample, torch.zeros(0, requires_grad=torch.is_grad_enabled())
    logs = differentiable_log_probabilities(model, batch.input_ids, sample * batch.input_ids.shape[1] + column - 1)
    return sample, logs.gather(1, batch.input_ids[sample, column][:, None].to(logs.device)).squeeze(1)
