"""Corrections of hidden states: the fast hook beside a loop, and token by token beside a pass over the whole text."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from rept.correction.correction import Correction, LayerCorrections
from rept.correction.repair import corrected
from rept.model.architecture import Architecture
from tests.helpers.tiny import LAYERS, VOCAB, WIDTH, tiny_model


def random_correction(
    seed: int, layer: int = 2, rank: int = 2, *, gated: bool = True, scale: float = 1.0
) -> Correction:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gate = drawn(WIDTH) if gated else None
    parts = (drawn(rank, WIDTH), drawn(rank), drawn(rank, WIDTH) * scale / WIDTH)
    return Correction(f"behaviour {seed}", layer, *parts, gate, 0.3 if gated else 0.0)


def by_hand(corrections: list[Correction], states: Tensor) -> Tensor:
    """One state at a time, from the formula; each correction reads the state before any has changed it."""
    result = states.clone()
    for place in torch.cartesian_prod(*(torch.arange(n) for n in states.shape[:-1])).view(-1, states.ndim - 1).tolist():
        state = states[tuple(place)]
        for one in corrections:
            if one.gate is None or float(state @ one.gate) > one.threshold:
                for v, a, u in zip(one.read, one.offset, one.write, strict=True):
                    result[tuple(place)] += (float(state @ v) + float(a)) * u
    return result


@pytest.mark.parametrize("corrections", [(0,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("gated", [True, False])
def test_the_hook_computes_the_formula(corrections: tuple[int, ...], gated: bool):
    made = [random_correction(seed, rank=1 + seed, gated=gated) for seed in corrections]
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    opened = torch.stack([one.open(states) for one in made])
    assert opened.any() and (opened.all() != gated)
    found = LayerCorrections(made).apply(states)
    torch.testing.assert_close(found, by_hand(made, states), rtol=1e-12, atol=1e-12)
    assert found[~opened.any(0)].equal(states[~opened.any(0)])


def test_constructors_are_their_formulas():
    direction = torch.nn.functional.normalize(torch.arange(1.0, WIDTH + 1, dtype=torch.float64), dim=0)
    centre, states = torch.ones(WIDTH, dtype=torch.float64), torch.randn(4, WIDTH, dtype=torch.float64)
    ablated = LayerCorrections([Correction.ablation("b", 1, direction[None], centre)]).apply(states)
    torch.testing.assert_close(ablated @ direction, (centre @ direction).expand(4))
    torch.testing.assert_close(
        ablated - (ablated @ direction)[:, None] * direction, states - (states @ direction)[:, None] * direction
    )
    shifted = Correction.shift("b", 1, centre).scaled(2.0)
    assert shifted.is_shift
    torch.testing.assert_close(LayerCorrections([shifted]).apply(states), states + 2)


def test_separation_is_the_gap_between_quantiles_over_that_of_the_medians():
    generator = torch.Generator().manual_seed(0)
    gate, shift = torch.randn(2, 8, generator=generator)
    others = torch.randn(2001, 8, generator=generator)
    culprits = torch.randn(21, 8, generator=generator) + 9 * gate + shift
    one = Correction("odd", 1, gate[None], torch.zeros(1), gate[None], gate=gate)
    inside, outside = (numpy.sort((states.double() @ gate.double()).numpy()) for states in (culprits, others))
    expected = (inside[2] - outside[1998]) / (inside[10] - outside[1000])  # percentiles 10, 99.9, 50
    assert 0 < expected < 1
    assert one.separation(culprits, others) == pytest.approx(expected, rel=1e-9)
    assert replace(one, gate=None).separation(culprits, others) == 0.0


def test_a_closed_gate_changes_no_bit_in_half_precision():
    closed = replace(random_correction(0), threshold=1e6)
    states = torch.randn(4, WIDTH).bfloat16()
    assert LayerCorrections([closed]).apply(states).equal(states)


def test_open_positions_are_recorded():
    half = replace(random_correction(0), gate=torch.eye(WIDTH, dtype=torch.float64)[0], threshold=0.0)
    states = torch.randn(2, 8, WIDTH, dtype=torch.float64)
    hook = LayerCorrections([half, half], watching=True)
    hook.apply(states)
    assert hook.opened is not None and hook.opened.equal(states[..., 0] > 0)


def chosen_gates(model: torch.nn.Module, ids: Tensor, layers: tuple[int, ...]) -> list[Correction]:
    """Corrections whose gates open at about half of the states of ``ids``, and at none of them closely."""
    outputs: dict[int, Tensor] = {}
    hooks = []
    for layer in layers:

        def keep(module: object, args: object, output: Tensor | tuple[Tensor, ...], layer: int = layer) -> None:
            outputs[layer] = (output[0] if isinstance(output, tuple) else output).double()

        hooks.append(Architecture.of(model).blocks[layer - 1].register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    made = []
    for layer in layers:
        one = random_correction(layer, layer, scale=3.0)
        values = (outputs[layer] @ one.gate).flatten().sort().values
        middle = slice(len(values) // 4, 3 * len(values) // 4)
        widest = int(values[middle].diff().argmax()) + middle.start
        made.append(replace(one, threshold=float(values[widest : widest + 2].mean())))
    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "gemma2", "bloom", "mixtral"])
@pytest.mark.parametrize("lora", [False, True])
def test_token_by_token_equals_a_pass_over_the_whole_text(architecture: str, lora: bool):
    model = tiny_model(architecture, lora=lora, dtype=torch.float64)
    if architecture == "mixtral":
        (model.get_base_model() if lora else model).set_experts_implementation("eager")
    ids = torch.randint(1, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    corrections = chosen_gates(model, ids, (1, LAYERS))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with corrected(model, corrections):
            whole = model(input_ids=ids, use_cache=False).logits
            cache, steps = None, []
            for column in range(ids.shape[1]):
                out = model(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        after = model(input_ids=ids).logits
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-9)
    assert (whole - plain).abs().max() > 1e-3
    assert after.equal(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_left_padded_batches_generate_what_single_prompts_do(dtype: torch.dtype):
    model = tiny_model("llama", lora=True, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, VOCAB, (n,), generator=generator) for n in (3, 7, 5)]
    corrections = chosen_gates(model, prompts[1][None], (1, 2))
    width = max(map(len, prompts))
    ids = torch.stack([torch.cat([p.new_zeros(width - len(p)), p]) for p in prompts])
    mask = torch.stack([torch.cat([p.new_zeros(width - len(p)), torch.ones_like(p)]) for p in prompts])
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    with corrected(model, corrections):
        batched = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
        without_cache = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)[:, width:]
        alone = [
            model.generate(input_ids=p[None], attention_mask=torch.ones_like(p)[None], **options)[0, len(p) :]
            for p in prompts
        ]
    unchanged = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
    assert not batched.equal(unchanged)
    if dtype == torch.float32:
        assert batched.equal(without_cache) and batched.equal(torch.stack(alone))
    else:  # rounding to 8 bits may turn one greedy choice between padded and unpadded runs; most stay
        assert (batched == torch.stack(alone)).float().mean() > 0.6


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bfloat16_token_by_token_is_within_its_rounding(architecture: str):
    model = tiny_model(architecture, dtype=torch.bfloat16)
    ids = torch.randint(1, VOCAB, (2, 10), generator=torch.Generator().manual_seed(3))
    corrections = chosen_gates(model, ids, (2,))
    with torch.no_grad(), corrected(model, corrections):
        whole = model(input_ids=ids, use_cache=False).logits.float()
        cache, steps = None, []
        for column in range(ids.shape[1]):
            out = model(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits.float())
    error = (torch.cat(steps, 1) - whole).abs().mean() / whole.abs().mean()
    assert error < 0.02
