"""Recording: which output becomes a leaf, what is unhooked, and what gradients are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.hooks import Response, gradients_of, outputs_of, record, sample_losses
from rept.types import IGNORE
from tests.helpers.tiny import tiny_batch, tiny_model


def test_response_positions_are_those_that_predict_a_response_token() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 5, 6], [IGNORE, 7, IGNORE, IGNORE]])
    response = Response.of(labels)
    assert response.position.tolist() == [1, 2, 4]
    assert response.sample.tolist() == [0, 0, 1]
    assert response.target.tolist() == [5, 6, 7]
    assert response.mean(torch.tensor([1.0, 3.0, 8.0])).tolist() == [2.0, 8.0]
    assert response.mean(torch.tensor([[1.0, 2.0], [3.0, 6.0], [8.0, 9.0]])).tolist() == [[2.0, 4.0], [8.0, 9.0]]


def test_the_first_output_is_a_leaf_and_later_ones_stand_above_it() -> None:
    model, batch = tiny_model(), tiny_batch()
    architecture = Architecture.of(model)
    modules = {layer: architecture.residual_stream(layer) for layer in (2, 3)}
    with record(modules) as outputs:
        sample_losses(model, batch.input_ids, Response.of(batch.labels))
    assert outputs[2].is_leaf and outputs[2].requires_grad
    assert not outputs[3].is_leaf
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parallel_outputs_are_leaves_of_one_pass() -> None:
    model, batch = tiny_model("gpt_neox"), tiny_batch()  # attention and MLP both read the block's input
    architecture = Architecture.of(model)
    with record({"a": architecture.attention_output(1), "m": architecture.mlp_output(1)}) as outputs:
        losses = sample_losses(model, batch.input_ids, Response.of(batch.labels))
    assert all(output.is_leaf for output in outputs.values())
    assert all(gradient.abs().sum() > 0 for gradient in gradients_of(losses, list(outputs.values())))


def test_hooks_are_removed_when_the_pass_fails() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="stop"), record({"layer": layer}):
        raise ValueError("stop")
    assert not layer._forward_hooks


def test_a_module_that_did_not_run_is_named() -> None:
    with pytest.raises(RuntimeError, match="did not run.*layer"), record({"layer": nn.Linear(2, 2)}):
        pass


def test_an_output_changed_in_place_afterwards_is_kept_as_it_was() -> None:
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    with record({"layer": layer}) as outputs:
        after = layer(torch.eye(2))
        after *= 3
    assert torch.equal(outputs["layer"], layer.weight.T)
    assert torch.equal(gradients_of(after.sum(), list(outputs.values()))[0], torch.full((2, 2), 3.0))


def test_inference_mode_is_refused_for_gradients_alone() -> None:
    layer = nn.Linear(2, 2)
    with torch.inference_mode():
        with pytest.raises(UsageError, match="inference_mode=False"), record({"layer": layer}):
            pass
        with record({"layer": layer}, gradients=False) as outputs:
            layer(torch.ones(1, 2))
    assert outputs["layer"].shape == (1, 2)


def test_losses_are_each_samples_own_mean() -> None:
    model, batch = tiny_model(), tiny_batch()
    losses = sample_losses(model, batch.input_ids, Response.of(batch.labels))
    for i in range(len(batch)):
        one = batch.select([i])
        torch.testing.assert_close(losses[i], model(input_ids=one.input_ids, labels=one.labels).loss)


@pytest.mark.parametrize("slope", [2.0**-30, 100.0], ids=["too small for float16", "overflows when scaled"])
def test_float16_gradients_neither_underflow_nor_overflow(slope: float) -> None:
    hidden = torch.ones(3, dtype=torch.float16, requires_grad=True)
    losses = hidden.float() * slope
    (gradient,) = gradients_of(losses, [hidden])
    assert gradient.dtype == torch.float32
    assert gradient.tolist() == [slope] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_gradients_keep_the_dtype_of_the_outputs(dtype: torch.dtype) -> None:
    hidden = torch.ones(3, dtype=dtype, requires_grad=True)
    (gradient,) = gradients_of((hidden * 0.5).sum(0, keepdim=True), [hidden])
    assert gradient.dtype == dtype and gradient.tolist() == [0.5] * 3


def test_without_gradients_a_copy_of_the_output_is_recorded() -> None:
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    with torch.no_grad(), record({"layer": layer}, gradients=False) as outputs:
        layer(torch.eye(2)).mul_(3)
    assert torch.equal(outputs["layer"], layer.weight.T) and not outputs["layer"].requires_grad


def test_a_pass_without_gradients_ends_with_the_last_module_that_is_read() -> None:
    model, batch = tiny_model(), tiny_batch()
    architecture = Architecture.of(model)
    read = {"attention": architecture.attention_output(2), "block": architecture.blocks[0]}
    with torch.no_grad(), record(read, gradients=False) as expected:
        logits = model(input_ids=batch.input_ids).logits
    ran: list[nn.Module] = []
    modules = [architecture.mlp_output(1), architecture.mlp_output(2), model.get_output_embeddings()]
    hooks = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in modules]
    found = outputs_of(model, batch.input_ids, read)
    for hook in hooks:
        hook.remove()
    assert ran == modules[:1]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in read)
    with torch.no_grad():
        assert torch.equal(model(input_ids=batch.input_ids).logits, logits)


def test_outputs_can_be_read_in_inference_mode() -> None:
    model, batch = tiny_model(), tiny_batch()
    with torch.inference_mode():
        found = outputs_of(model, batch.input_ids, {"block": Architecture.of(model).blocks[0]})
    assert found["block"].shape[:2] == batch.input_ids.shape


def test_a_module_that_fails_is_not_taken_for_the_end_of_the_pass() -> None:
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(RuntimeError, match="did not run.*other"):
        outputs_of(model, batch.input_ids, {"other": nn.Linear(2, 2)})
