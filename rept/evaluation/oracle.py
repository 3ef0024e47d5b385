"""The method as a slow loop over single samples, written from the paper (arXiv 2510.02334). Fast paths must equal it.

Nothing is shared with :mod:`rept.model.hooks`: no batch, no padding, full logits, and gradients found another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rept.model.architecture import Architecture
from rept.types import IGNORE, Batch


class States(NamedTuple):
    """One sample at one site and layer."""

    representation: Tensor  # (T D)
    gradient: Tensor  # (T D), of the sample's own mean loss over its response


def samples(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Each sample's (input_ids (T), labels (T)) without padding."""
    for i in range(len(batch)):
        length = int(batch.length[i])
        yield batch.input_ids[i, :length], batch.labels[i, :length]


def states(model: nn.Module, input_ids: Tensor, labels: Tensor, layer: int, site: str = "residual_stream") -> States:
    """H and dL/dH at all positions of one sample.

    The residual stream is taken from Transformers' ``hidden_states``. For the other sites, zeros are added to what the
    module gives out, and the gradient with respect to the zeros is the gradient with respect to the output.
    """
    layer = Architecture.of(model).layer(layer)
    with torch.enable_grad():
        # A graph needs something to start from, and parameters are frozen.
        embedded = model.get_input_embeddings()(input_ids[None]).detach().requires_grad_()
        embedded = embedded.clone()  # some models scale their input in place, which a leaf does not allow
        if site == "residual_stream":
            output = model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
            hidden = output.hidden_states[layer]
            (gradient,) = torch.autograd.grad(_mean_loss(output.logits[0], labels), hidden)
            return States(hidden[0].detach(), gradient[0])
        seen: list[Tensor] = []
        zeros: list[Tensor] = []

        def add_zeros(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            first = output[0] if isinstance(output, tuple) else output
            seen.append(first.detach().clone())
            zeros.append(torch.zeros_like(first).requires_grad_())
            summed = first + zeros[0]
            return (summed, *output[1:]) if isinstance(output, tuple) else summed

        handle = getattr(Architecture.of(model), site)(layer).register_forward_hook(add_zeros)
        try:
            logits = model(inputs_embeds=embedded, use_cache=False).logits[0]
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(_mean_loss(logits, labels), zeros[0])
    length = len(input_ids)
    return States(seen[0].reshape(length, -1), gradient.reshape(length, -1))


def signature(
    sample: States, labels: Tensor, position: Literal["last_prompt", "response_mean"] = "last_prompt"
) -> States:
    """Each field (D): at the position that predicts the first response token, or averaged over all that predict one."""
    predicting = [column - 1 for column in _response(labels)]
    if position == "last_prompt":
        return States(sample.representation[predicting[0]], sample.gradient[predicting[0]])
    return States(sample.representation[predicting].mean(0), sample.gradient[predicting].mean(0))


def pair_score(
    train: States,
    query: States,
    form: Literal["cosine", "inner_product", "gradient_representation", "block_cosine"] = "cosine",
    weight: float = 0.5,
) -> float:
    """Influence of one training sample on one query, from their signatures.

    With h = representation, g = gradient, s = concat(h, g):
    cosine: ``cos(s, s')``. inner_product: ``s . s'``. gradient_representation: ``cos(g, g') * cos(h, h')``.
    block_cosine: ``weight * cos(h, h') + (1 - weight) * cos(g, g')``.
    """
    h, h_query = train.representation.tolist(), query.representation.tolist()
    g, g_query = train.gradient.tolist(), query.gradient.tolist()
    if form == "cosine":
        return _cosine(h + g, h_query + g_query)
    if form == "inner_product":
        return _dot(h + g, h_query + g_query)
    if form == "gradient_representation":
        return _cosine(g, g_query) * _cosine(h, h_query)
    return weight * _cosine(h, h_query) + (1 - weight) * _cosine(g, g_query)


def token_scores(
    train: States, query: States, query_labels: Tensor, form: Literal["published", "anchored", "matched"] = "published"
) -> list[float]:
    """Score of each token of the training sample: ``I_t = (sum_i ghat(query)_i) . ghat(train)_t``, i over the response.

    matched: ``max_i (ghat(query)_i . ghat(train)_t)`` over the positions that predict the response, times that cosine.
    anchored: ``I_t * cos(h(train)_t, h(query))``, h(query) being the representation at the query's last prompt token.
    """
    response = _response(query_labels)
    if form == "matched":
        return _matched(train, query, response)
    total = [0.0] * query.gradient.shape[1]
    for column in response:
        total = [a + b for a, b in zip(total, _unit(query.gradient[column].tolist()), strict=True)]
    scores = [_dot(total, _unit(row)) for row in train.gradient.tolist()]
    if form == "published":
        return scores
    anchor = query.representation[response[0] - 1].tolist()
    return [s * _cosine(h, anchor) for s, h in zip(scores, train.representation.tolist(), strict=True)]


def _matched(train: States, query: States, response: list[int]) -> list[float]:
    """The best agreement with a position that predicts the response, times the cosine to the last prompt token."""
    steps = [_unit(query.gradient[column - 1].tolist()) for column in response]
    anchor = query.representation[response[0] - 1].tolist()
    scores = []
    for g, h in zip(train.gradient.tolist(), train.representation.tolist(), strict=True):
        scores.append(max(_dot(_unit(g), step) for step in steps) * _cosine(h, anchor))
    return scores


def adjacent_cosine(model: nn.Module, prompt: Tensor) -> list[float]:
    """Cosine between the hidden states of layers l and l + 1, l from 1, at the last token of the prompt (T) alone."""
    with torch.no_grad():
        hidden = model(prompt[None], use_cache=False, output_hidden_states=True).hidden_states[1:]
    ends = [layer[0, -1].tolist() for layer in hidden]
    return [_cosine(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def _response(labels: Tensor) -> list[int]:
    return [column for column, label in enumerate(labels.tolist()) if label != IGNORE]


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.dtype != torch.float64:
        logits = logits.float()
    columns = _response(labels)
    return sum(-logits[t - 1].log_softmax(-1)[labels[t]] for t in columns) / len(columns)


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _unit(a: list[float]) -> list[float]:
    norm = sqrt(_dot(a, a))
    return [x / norm for x in a] if norm else a


def _cosine(a: list[float], b: list[float]) -> float:
    return _dot(_unit(a), _unit(b))
