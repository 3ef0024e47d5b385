"""Signatures compared with the oracle in float64, the official implementation and invariances, on many models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from extractors.sites.reader import SITES, SingleSite
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.config.plug_ins import build
from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.architecture import Architecture
from rept.model.loading import to_float64
from rept.signatures.extractor import POSITIONS, Extractor, Position
from rept.types import FIELDS, Batch, Key, Signature
from tests.helpers.tiny import ARCHITECTURES, LAYERS, WIDTH, tiny_batch, tiny_model

SHARED = Path(__file__).parents[3] / "shared"
ALL_LAYERS = range(1, LAYERS + 1)
THREE = ("residual_stream", "attention_output", "mlp_output")


def assert_rows_close(rows: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Each row's error is at most ``tolerance`` of the expected row's norm."""
    for row, want in zip(rows, expected, strict=True):
        error = float((row.double() - want.double()).norm() / want.double().norm())
        assert error <= tolerance, error


def oracle_signature(
    model: nn.Module, batch: Batch, keys: Iterable[Key], position: Position = "last_prompt"
) -> Signature:
    signature: Signature = {}
    for site, layer in dict.fromkeys((key.site, key.layer) for key in keys):
        rows = []
        for input_ids, labels in oracle.samples(batch):
            rows.append(oracle.signature(oracle.states(model, input_ids, labels, layer, site), labels, position))
        for field, row in zip(FIELDS, zip(*rows, strict=True), strict=True):
            signature[Key(site, layer, field)] = torch.stack(row)
    return signature


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_sites_equal_autograd_in_float64(name: str, lora: bool) -> None:
    batch = tiny_batch([(3, 4), (6, 2)], pad=2)
    signature = SeveralSites()(tiny_model(name, lora=lora), batch, [1, -1])
    exact = oracle_signature(to_float64(tiny_model(name, lora=lora)), batch, signature)
    assert set(signature) == {Key(site, layer, f) for site in THREE for layer in (1, LAYERS) for f in FIELDS}
    for key, rows in signature.items():
        assert rows.dtype == torch.float32
        assert_rows_close(rows, exact[key])


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_keeps_every_row_near_the_exact_one(name: str, lora: bool) -> None:
    batch = tiny_batch()
    signature = SeveralSites()(tiny_model(name, lora=lora, dtype=torch.bfloat16), batch, ALL_LAYERS)
    exact = SeveralSites()(tiny_model(name, lora=lora), batch, ALL_LAYERS)
    for key, rows in signature.items():
        assert rows.dtype == torch.float32
        assert torch.cosine_similarity(rows, exact[key]).min() > 0.98, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_too_small_for_half_precision_are_not_lost(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    model.lm_head.weight.data *= 1e-4  # nearly flat logits: gradients of 1e-8 and below
    gradient = ResidualStream(fields=("gradient",))(model, tiny_batch(), [1])[Key("residual_stream", 1, "gradient")]
    assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("position", POSITIONS)
def test_every_position_equals_the_oracle(position: Position) -> None:
    model, batch = tiny_model(), tiny_batch(pad=1)
    signature = SeveralSites(position=position)(model, batch, ALL_LAYERS)
    exact = oracle_signature(model, batch, signature, position)
    for key, rows in signature.items():
        assert_rows_close(rows, exact[key])


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_tokens_equal_the_oracle_at_every_position(name: str) -> None:
    model, batch = tiny_model(name), tiny_batch(pad=1)
    tokens = SeveralSites(fields=("gradient",)).all_positions(model, batch, [2])
    for (site, layer, field), block in tokens.items():
        assert block.shape == (*batch.input_ids.shape, WIDTH) and block.dtype == torch.float32
        for i, (input_ids, labels) in enumerate(oracle.samples(batch)):
            expected = getattr(oracle.states(model, input_ids, labels, layer, site), field)
            torch.testing.assert_close(block[i, : len(input_ids)], expected, rtol=1e-4, atol=1e-6)
    assert len(tokens) == 2 * len(THREE)


def assert_same(signature: Signature, expected: Signature) -> None:
    assert list(signature) == list(expected)
    for key, rows in signature.items():
        assert_rows_close(rows, expected[key])


def test_rows_depend_on_no_neighbour_order_padding_or_batch_size() -> None:
    model, extractor, batch = tiny_model(), SeveralSites(), tiny_batch()
    together = extractor(model, batch, ALL_LAYERS)
    assert_same(extractor(model, tiny_batch(pad=5), ALL_LAYERS), together)
    order = [2, 0, 3, 1]
    shuffled = extractor(model, batch.select(order), ALL_LAYERS)
    assert_same(shuffled, {key: rows[order] for key, rows in together.items()})
    singly = [extractor(model, batch.select([i]), ALL_LAYERS) for i in range(len(batch))]
    assert_same({key: torch.cat([one[key] for one in singly]) for key in together}, together)


@pytest.mark.parametrize("site", THREE)
def test_several_sites_and_layers_give_what_each_gives_alone(site: str) -> None:
    model, batch = tiny_model("gpt_neox"), tiny_batch()
    together = SeveralSites()(model, batch, ALL_LAYERS)
    for layer in ALL_LAYERS:
        for key, rows in SITES[site]()(model, batch, [layer]).items():
            assert_rows_close(rows, together[key])


def test_keys_come_in_the_order_of_the_request() -> None:
    signature = SeveralSites(sites=["residual_stream", "attention_output"])(tiny_model(), tiny_batch(), [2, 1])
    sites = [(key.site, key.layer) for key in signature if key.field == "representation"]
    assert sites == [(site, layer) for site in ("residual_stream", "attention_output") for layer in (2, 1)]


def test_representation_alone_needs_no_graph_and_no_logits() -> None:
    model, batch, seen = tiny_model(), tiny_batch(), []
    last = Architecture.of(model).blocks[-1]
    handles = [
        module.register_forward_hook(lambda module, args, out: seen.append((module, out.requires_grad)))
        for module in (last, model.get_output_embeddings())
    ]
    signature = SeveralSites(fields=("representation",))(model, batch, ALL_LAYERS)
    for handle in handles:
        handle.remove()
    assert seen == [(last, False)]
    assert_same(signature, {k: v for k, v in SeveralSites()(model, batch, ALL_LAYERS).items() if k in signature})


def test_no_parameter_receives_a_gradient_even_where_it_may() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = ResidualStream()(model, batch, [2])
    model.requires_grad_(True)
    assert_same(ResidualStream()(model, batch, [2]), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="training mode"):
        ResidualStream()(tiny_model().train(), tiny_batch(), [1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": ["hidden"]}, r"extractor\.fields to name some of representation, gradient, but got \['hidden'\]"),
        ({"fields": []}, r"extractor\.fields"),
        ({"position": "first"}, r"extractor\.position to name some of last_prompt, .*text_mean, but got \['first'\]"),
        ({"position": ["text_mean", "first"]}, r"extractor\.position .* but got \['text_mean', 'first'\]"),
        ({"position": []}, r"extractor\.position"),
        ({"sites": ["stream"]}, r"extractor\.sites to be a site, .*residual_stream.* but got 'stream'"),
        ({"sites": []}, r"extractor\.sites"),
    ],
)
def test_an_unknown_word_is_reported_with_the_known_ones(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SeveralSites(**arguments)


def test_several_positions_give_what_each_gives_alone() -> None:
    model, batch = tiny_model(), tiny_batch(pad=2)
    together = SeveralSites(THREE, FIELDS, POSITIONS)
    signature = together(model, batch, [1, -1])
    assert together.fields == tuple(f"{field}_{position}" for field in FIELDS for position in POSITIONS)
    assert {key.field for key in signature} == set(together.fields) and len(signature) == 2 * 3 * 2 * 3
    for position in POSITIONS:
        for key, block in SeveralSites(position=position)(model, batch, [1, -1]).items():
            assert torch.equal(signature[key._replace(field=f"{key.field}_{position}")], block)
    assert SeveralSites(fields=["gradient"], position=["text_mean"]).fields == ("gradient_text_mean",)


def test_a_custom_site_is_a_subclass_with_one_method_and_can_be_named() -> None:
    class AttentionInput(SingleSite):
        name = "attention_input"

        def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
            return Architecture.of(model).blocks[layer - 1].input_layernorm

    class Renamed(AttentionInput):  # without a name of its own it is not registered
        pass

    try:
        signature = AttentionInput()(tiny_model(), tiny_batch(), [-1])
        assert isinstance(AttentionInput(), Extractor) and SITES["attention_input"] is AttentionInput
        assert set(signature) == {Key("attention_input", LAYERS, field) for field in FIELDS}
        for site in ("attention_input", AttentionInput()):
            both = SeveralSites(["mlp_output", site])(tiny_model(), tiny_batch(), [-1])
            assert_same({key: both[key] for key in signature}, signature)
            assert len(both) == 2 * len(signature)
    finally:
        del SITES["attention_input"]


def test_a_site_can_be_given_by_its_target() -> None:
    residual = {"_target_": "extractors.sites.residual_stream.ResidualStream"}
    target = "extractors.sites.several_sites.SeveralSites"
    read = build({"_target_": target, "sites": ["mlp_output", residual]}, SeveralSites)
    assert [type(part) for part in read.parts] == [SITES["mlp_output"], ResidualStream]


def test_a_site_does_not_take_the_name_of_another() -> None:
    with pytest.raises(UsageError, match=r"'mlp_output' is the name of extractors\.sites\.mlp_output\.MLPOutput"):
        type("Another", (ResidualStream,), {"name": "mlp_output"})
    assert SITES["mlp_output"].__name__ == "MLPOutput"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the official implementation's signatures are not beside the project")
def test_signatures_equal_the_official_implementations() -> None:
    from datasets import load_from_disk

    from rept.data.encoder import Encoder, collate
    from rept.data.samples import Sample
    from rept.model.loading import load_model, load_tokenizer

    path = str(SHARED / "models" / "alpaca-backdoor-5m")
    official = np.load(SHARED / "reference" / "official_signatures.npz")
    encoder = Encoder(load_tokenizer(path), max_length=512)
    data, model, layers = load_from_disk(str(SHARED / "data" / "backdoor")), load_model(path), (2, 4, 6)
    rows = official["row"].tolist()
    samples = [Sample(({"role": "user", "content": data[r]["prompts"]},), data[r]["response"]) for r in rows]
    encoded = [(i, sample, encoder(sample)) for i, sample in enumerate(samples)]
    encoded.sort(key=lambda one: len(one[2].input_ids))
    for start in range(0, len(rows), 8):
        batch = collate(encoded[start : start + 8], "train", encoder.pad_id)
        for key, block in ResidualStream()(model, batch, layers).items():
            expected = torch.from_numpy(official[f"{key.field}_{key.layer}"])
            assert_rows_close(block, expected[batch.row], tolerance=1e-4)
