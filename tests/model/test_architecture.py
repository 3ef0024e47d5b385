"""Blocks, final norm and sites are found by structure, and the sites are what the blocks add to the stream."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rept.errors import UsageError
from rept.model.architecture import Architecture, _find_norm
from rept.model.hooks import record
from tests.helpers.tiny import ARCHITECTURES, LAYERS, tiny_batch, tiny_model


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_and_mlp_output_are_what_the_block_adds(name: str, lora: bool) -> None:
    model, batch = tiny_model(name, lora=lora), tiny_batch()
    architecture = Architecture.of(model)
    assert len(architecture) == LAYERS
    entered: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        return lambda _, args, kwargs: entered.update({layer: (args or tuple(kwargs.values()))[0].clone()})

    handles = [
        block.register_forward_pre_hook(keep(layer), with_kwargs=True)
        for layer, block in enumerate(architecture.blocks, start=1)
    ]
    modules = {("block", layer): block for layer, block in enumerate(architecture.blocks, start=1)}
    modules |= {("attention", layer): architecture.attention_output(layer) for layer in range(1, LAYERS + 1)}
    modules |= {("mlp", layer): architecture.mlp_output(layer) for layer in range(1, LAYERS + 1)}
    with torch.no_grad(), record(modules, gradients=False) as outputs:
        model(input_ids=batch.input_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer in range(1, LAYERS + 1):
        shape = entered[layer].shape
        added = outputs["attention", layer].reshape(shape) + outputs["mlp", layer].reshape(shape)
        torch.testing.assert_close(outputs["block", layer] - entered[layer], added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "norm", "attention", "mlp"),
    [
        ("llama", "norm", "self_attn", "mlp"),
        ("gemma2", "norm", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("olmo2", "norm", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("gpt2", "ln_f", "attn", "mlp"),
        ("gpt_neox", "final_layer_norm", "attention", "mlp"),
        ("bloom", "ln_f", "self_attention.dense", "mlp.dense_4h_to_h"),
        ("opt", "final_layer_norm", "self_attn", "fc2"),
        ("mixtral", "norm", "self_attn", "mlp"),
    ],
)
def test_parts_are_found_by_structure(name: str, norm: str, attention: str, mlp: str) -> None:
    model = tiny_model(name)
    architecture = Architecture.of(model)
    block = architecture.blocks[1]
    names = {module: path.rpartition(".")[2] for path, module in model.named_modules()}
    assert names[architecture.final_norm] == norm
    assert architecture.attention_output(2) is block.get_submodule(attention)
    assert architecture.mlp_output(2) is block.get_submodule(mlp)


@pytest.mark.parametrize(
    ("children", "found"),
    [
        (["before", "blocks", "after", "later"], "after"),
        (["embed", "blocks", "after"], "after"),
        (["embed", "before", "blocks"], "before"),
        (["before", "another", "blocks"], None),
        (["embed", "blocks"], None),
        (["blocks", "final_norm_scale"], "final_norm_scale"),
    ],
)
def test_the_final_norm_is_the_first_after_the_blocks_or_else_the_only_one_before(
    children: list[str], found: str | None
) -> None:
    holder = nn.Module()
    for child in children:
        kind = nn.ModuleList if child == "blocks" else nn.Identity if child.startswith("final") else nn.LayerNorm
        holder.add_module(child, kind([]) if child == "blocks" else kind(4))
    assert _find_norm(holder, "model.blocks") is (found and holder.get_submodule(found))


def test_layers_count_from_one_and_minus_one_is_the_last() -> None:
    architecture = Architecture.of(tiny_model())
    assert [architecture.layer(number) for number in (1, LAYERS, -1)] == [1, LAYERS, LAYERS]
    assert architecture.residual_stream(1) is architecture.blocks[0]
    assert architecture.residual_stream(-1) is architecture.final_norm


@pytest.mark.parametrize("number", [0, LAYERS + 1, -2])
def test_a_layer_out_of_range_names_the_range(number: int) -> None:
    with pytest.raises(UsageError, match=rf"Layer {number} .* 1 to {LAYERS}"):
        Architecture.of(tiny_model()).mlp_output(number)


def test_settings_are_remembered_for_the_model() -> None:
    model = tiny_model()
    named = Architecture.of(model, attention="self_attn.o_proj", final_norm="model.layers.2")
    assert Architecture.of(model) is named
    assert named.attention_output(2) is model.model.layers[1].self_attn.o_proj
    assert named.residual_stream(-1) is model.model.layers[2]


def test_dotted_names_reach_below_an_adapter() -> None:
    model = tiny_model(lora=True)
    assert len(Architecture.of(model, blocks="model.layers")) == LAYERS


@pytest.mark.parametrize("setting", ["blocks", "final_norm", "attention", "mlp"])
def test_a_name_that_leads_nowhere_is_reported_with_the_setting(setting: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.{setting}=no\.such"):
        architecture = Architecture.of(tiny_model(), **{setting: "no.such"})
        architecture.attention_output(1), architecture.mlp_output(1)


def test_blocks_must_be_a_list() -> None:
    with pytest.raises(UsageError, match=r"model\.blocks=lm_head names a Linear"):
        Architecture.of(tiny_model(), blocks="lm_head")


class Block(nn.Module):
    """A block whose parts have unknown names, with as many experts as the model has layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


class Strange(nn.Module):
    def __init__(self, towers: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=3))
        self.towers = nn.ModuleDict({f"t{i}": nn.ModuleList(Block() for _ in range(3)) for i in range(towers)})


def test_a_list_within_a_block_is_not_taken_for_the_blocks() -> None:
    model = Strange(towers=1)
    assert Architecture.of(model).blocks == tuple(model.towers["t0"])


@pytest.mark.parametrize(("towers", "found"), [(0, "no list of 3"), (2, r"2 lists of 3 modules \(towers.t0")])
def test_blocks_that_are_not_found_are_listed_with_the_setting(towers: int, found: str) -> None:
    with pytest.raises(UsageError, match=rf"{found}.*model\.blocks"):
        Architecture.of(Strange(towers))


def test_parts_that_are_not_found_are_listed_with_their_setting() -> None:
    architecture = Architecture.of(Strange(towers=1))
    with pytest.raises(UsageError, match=r"attention of layer 1 .* mixer, experts.*model\.attention"):
        architecture.attention_output(1)
    with pytest.raises(UsageError, match=r"mlp of layer 2 .* mixer, experts.*model\.mlp"):
        architecture.mlp_output(2)
    with pytest.raises(UsageError, match=r"final norm .* beside the blocks, only t0.*model\.final_norm"):
        architecture.residual_stream(-1)
