"""Masking of single prompt tokens against a loop over single texts."""

from __future__ import annotations

import pytest
import torch

from rept.model.masking import Maskable, masking_effects
from tests.helpers.tiny import ARCHITECTURES, tiny_batch, tiny_model


def texts(device: str = "cpu") -> list[Maskable]:
    batch = tiny_batch([(3, 4), (7, 2), (1, 1), (5, 9)])
    found = []
    for i, (length, end) in enumerate(zip(batch.length.tolist(), batch.prompt_end.tolist(), strict=True)):
        weights = torch.zeros(length)
        weights[end + 1 : end + 3] = torch.tensor([0.75, 0.25])[: length - end - 1]
        found.append(Maskable(batch.input_ids[i, :length], weights, list(range(end, -1, -2))))
    return found


def loop(model: torch.nn.Module, text: Maskable, fill: torch.Tensor) -> list[float]:
    def loss(masked: int | None) -> float:
        embeddings = model.get_input_embeddings()

        def replace(module, args, output):
            output = output.clone()
            if masked is not None:
                output[0, masked] = fill
            return output

        with torch.no_grad(), embeddings.register_forward_hook(replace):
            logits = model(input_ids=text.input_ids[None]).logits[0].float().log_softmax(-1)
        return -sum(float(text.weights[t] * logits[t - 1, text.input_ids[t]]) for t in range(1, len(text.weights)))

    return [loss(position) - loss(None) for position in text.positions]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_effects_equal_a_loop_over_single_texts(architecture, lora):
    model = tiny_model(architecture, lora=lora)
    width = model.get_input_embeddings()(torch.tensor([1])).shape[-1]
    fill = 0.1 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    for tokens_per_batch in (1, 16, 1000):
        for text, found in zip(texts(), masking_effects(model, texts(), fill, tokens_per_batch), strict=True):
            torch.testing.assert_close(found, torch.tensor(loop(model, text, fill)), rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32():
    fill = torch.zeros(tiny_model().get_input_embeddings().weight.shape[1])
    single = torch.cat(masking_effects(tiny_model(), texts(), fill, 100))
    half = torch.cat(masking_effects(tiny_model(dtype=torch.bfloat16), texts(), fill, 100))
    assert half.dtype == torch.float32 and single.abs().max() > 0.01
    assert (half - single).norm() < 0.1 * single.norm()


def test_a_text_without_weights_or_positions_has_no_effects():
    text = texts()[0]
    none = Maskable(text.input_ids, torch.zeros_like(text.weights), text.positions)
    empty = Maskable(text.input_ids, text.weights, [])
    found = masking_effects(tiny_model(), [none, empty], torch.zeros(1), 100)
    assert [one.tolist() for one in found] == [[0.0] * len(text.positions), []]
