"""Logits and losses at chosen positions equal those of the full pass, and no other positions are computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rept.model import lm_head
from rept.model.hooks import Response
from rept.model.lm_head import logits_at, losses_at
from tests.helpers.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])  # plain, soft-capped and scaled logits
def test_logits_of_chosen_positions_are_those_of_the_full_pass(name: str) -> None:
    model, batch = tiny_model(name), tiny_batch()
    position = Response.of(batch.labels).position
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1]))
    logits = logits_at(model, batch.input_ids, position)
    handle.remove()
    full = model(input_ids=batch.input_ids).logits.flatten(0, 1)[position]
    assert seen == [(1, len(position))]  # the hook that chooses positions is gone again afterwards
    torch.testing.assert_close(logits, full)


def test_a_model_that_hides_its_output_layer_computes_all_logits() -> None:
    model, batch = tiny_model(), tiny_batch()
    position = Response.of(batch.labels).position
    expected = logits_at(model, batch.input_ids, position)
    model.get_output_embeddings = lambda: None
    torch.testing.assert_close(logits_at(model, batch.input_ids, position), expected)


def positions_shown(model: nn.Module, call) -> list[torch.Size]:
    """Leading sizes of what the output layer is shown in each of its runs during ``call()``."""
    seen: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0].shape[:-1]))
    call()
    handle.remove()
    return seen


def full_losses(model: nn.Module, batch, response: Response) -> torch.Tensor:
    logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[response.position]
    return cross_entropy(logits.float(), response.target, reduction="none")


def with_embedding_gradient(model: nn.Module, compute) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and the gradient of a weighted sum of them with respect to the embedded input."""
    leaves = []

    def start(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    handle = model.get_input_embeddings().register_forward_hook(start)
    losses = compute()
    handle.remove()
    weight = 1 - torch.arange(len(losses)) % 2 / 2  # 1, 0.5, 1, ...: exact
    return losses, torch.autograd.grad((losses * weight).sum(), leaves[-1])[0]


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gptj"])  # plain, capped, scaled, with a bias
def test_losses_and_their_gradients_are_those_of_the_full_pass(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(lm_head, "CHUNK_LOGITS", 1)
    model, batch = tiny_model(name), tiny_batch()
    if model.lm_head.bias is not None:
        model.lm_head.bias.data.normal_()
    response = Response.of(batch.labels)
    losses, gradient = with_embedding_gradient(
        model, lambda: losses_at(model, batch.input_ids, response.position, response.target)
    )
    expected, expected_gradient = with_embedding_gradient(model, lambda: full_losses(model, batch, response))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(("name", "shown"), [("llama", [(1, 1)]), ("gemma2", [(1, 16)])])
def test_the_output_layer_is_shown_one_position_where_nothing_comes_after_it(name: str, shown: list) -> None:
    model, batch = tiny_model(name), tiny_batch()
    response = Response.of(batch.labels)

    def compute() -> None:
        losses_at(model, batch.input_ids, response.position, response.target)

    compute()  # the first pass finds out what comes after the layer
    assert positions_shown(model, compute) == shown


class Unusual(nn.Module):
    """A model that calls its output layer, or returns its logits, in another way than those of Transformers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.embed, self.head = way, nn.Embedding(97, 8), nn.Linear(8, 97)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        states = self.embed(input_ids)
        if self.way == "keyword":
            return SimpleNamespace(logits=self.head(input=states))
        if self.way == "rows":
            return SimpleNamespace(logits=self.head(states.flatten(0, 1)).unflatten(0, input_ids.shape))
        if self.way == "twice":
            return SimpleNamespace(logits=self.head(states[:, :1]).sum() * 0 + self.head(states))
        return SimpleNamespace(logits=self.head(states) * 1.001)


@pytest.mark.parametrize("way", ["keyword", "rows", "twice", "scaled a little"])
def test_another_use_of_the_output_layer_gives_the_same_losses(way: str) -> None:
    torch.manual_seed(0)
    model, batch = Unusual(way).requires_grad_(False), tiny_batch()
    response = Response.of(batch.labels)
    losses, gradient = with_embedding_gradient(
        model, lambda: losses_at(model, batch.input_ids, response.position, response.target)
    )
    expected, expected_gradient = with_embedding_gradient(model, lambda: full_losses(model, batch, response))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    full = model(input_ids=batch.input_ids).logits.flatten(0, 1)[response.position]
    torch.testing.assert_close(logits_at(model, batch.input_ids, response.position), full)


def test_a_weight_is_used_directly_only_if_it_is_whole_and_of_the_states_dtype() -> None:
    class Part(torch.Tensor):
        """As a shard of a weight is."""

    hidden, weight = torch.ones(2, 3), torch.ones(4, 3)
    assert lm_head._is_plain(nn.Parameter(weight), hidden)
    others = (weight.bfloat16(), weight.to("meta"), weight.as_subclass(Part))
    assert not any(lm_head._is_plain(other, hidden) for other in others)


def test_a_sample_without_finite_logits_does_not_change_how_others_are_computed() -> None:
    model, batch = tiny_model(), tiny_batch()
    response = Response.of(batch.labels)
    weight = model.lm_head.weight.data.clone()
    model.lm_head.weight.data[0] = torch.nan
    assert losses_at(model, batch.input_ids, response.position, response.target).isnan().all()
    model.lm_head.weight.data = weight
    shown = positions_shown(model, lambda: losses_at(model, batch.input_ids, response.position, response.target))
    assert shown == [(1, 1)]


def test_an_output_layer_that_learns_gets_its_gradient() -> None:
    model, batch = tiny_model().requires_grad_(True), tiny_batch()
    response = Response.of(batch.labels)
    losses_at(model, batch.input_ids, response.position, response.target).sum().backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    full_losses(model, batch, response).sum().backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad)


def test_a_loss_beyond_float32_stays_finite_with_an_exact_gradient() -> None:
    model, batch = tiny_model(), tiny_batch([(2, 1)])
    model.lm_head.weight.data *= 1e4
    response = Response.of(batch.labels)
    losses, gradient = with_embedding_gradient(
        model, lambda: losses_at(model, batch.input_ids, response.position, response.target)
    )
    expected, expected_gradient = with_embedding_gradient(model, lambda: full_losses(model, batch, response))
    assert expected > 100 and losses.isfinite()
    torch.testing.assert_close(gradient, expected_gradient)
