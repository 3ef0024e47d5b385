"""Per-sample gradients of weights against autograd, and what is made of them against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from extractors.gradients.adam_gradient import AdamGradient
from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.projection import TwoSided
from extractors.gradients.rapid_in import RapidIn
from extractors.gradients.weights import Factors, choose_weights, gradient_factors
from rept.errors import UsageError
from rept.model.freezing import freeze
from rept.training.from_scratch import tiny_llama
from rept.types import IGNORE, Key
from tests.helpers.tiny import tiny_batch, tiny_model, trained_by_adam

CASES = [
    ("llama", False, "all"),
    ("llama", True, "auto"),
    ("llama", True, "all"),
    ("llama", False, r"mlp\.down_proj|q_proj"),
    ("gemma", False, "all"),  # tied, and scaled, embedding
    ("gpt2", False, r"wte|\.h\.|ln_f"),  # tied, transposed layers, biases
    ("gpt2", True, "lora"),
    ("opt", False, r"layers|embed_tokens"),  # MLPs that see a list of positions
    ("qwen3", False, "all"),  # norms of each head
    ("bloom", False, "all"),
    ("gpt_neox", False, "all"),
    ("falcon", False, "all"),
]


def exact(model, batch, names):
    """The gradients (B P) by autograd, one sample at a time, whole logits, no padding."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[name].requires_grad_() for name in names]
    rows = []
    for i, length in enumerate(batch.length.tolist()):
        logits = model(input_ids=batch.input_ids[i : i + 1, :length]).logits[0]
        loss = cross_entropy(logits[:-1], batch.labels[i, 1:length], ignore_index=IGNORE)
        rows.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, chosen)]))
    model.requires_grad_(False)
    return torch.stack(rows)


def only(signature):
    ((_, block),) = signature.items()
    return block


def assert_close(rows, expected, tolerance=1e-5):
    assert ((rows - expected).norm(dim=1) <= tolerance * expected.norm(dim=1)).all()


@pytest.mark.parametrize(("architecture", "lora", "weights"), CASES)
def test_every_sample_s_gradient_equals_autograd(architecture, lora, weights):
    model, batch = tiny_model(architecture, lora=lora), tiny_batch(pad=2)
    rows = only(ParameterGradient(weights, dimension=None)(model, batch, []))
    assert rows.dtype == torch.float32
    assert_close(rows, exact(model, batch, choose_weights(model, weights)))


def test_weights_as_sites_of_their_own_and_normalized():
    model, batch = tiny_model(lora=True), tiny_batch([(3, 4), (7, 2), (5, 9)])
    names = choose_weights(model, "lora")
    signature = ParameterGradient("lora", None, normalize=True, each=True)(model, batch, [])
    assert list(signature) == [Key(name, 0, "gradient") for name in names]
    for name, block in zip(names, signature.values(), strict=True):
        expected = exact(model, batch, [name])
        assert_close(block, expected / expected.norm(dim=1, keepdim=True))


def test_weights_without_a_gradient_stay_zero():
    model, batch = tiny_model(lora=True), tiny_batch()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    signature = ParameterGradient("lora_A", normalize=True, each=True)(model, batch, [])
    assert all((block == 0).all() for block in signature.values())


def test_norms_of_factors_are_those_of_whole_gradients():
    factors = gradient_factors(tiny_model("gemma"), tiny_batch(), choose_weights(tiny_model("gemma"), "all"))
    for one in factors.values():
        torch.testing.assert_close(one.norms(), one.whole().flatten(1).norm(dim=1), rtol=1e-4, atol=1e-7)


def test_small_weights_of_a_sum_use_different_numbers_and_a_vector_all_of_them():
    projection = TwoSided(64)
    of_vector = projection.of_matrices("bias", torch.ones(1, 100, 1))
    assert of_vector.shape == (1, 64) and projection._matrices("bias", 100, 1, of_vector.device)[0].shape == (64, 100)
    used = {tuple(projection.of_matrices(name, torch.ones(1, 2, 2))[0].nonzero()[:, 0].tolist()) for name in "abcdefgh"}
    assert {len(numbers) for numbers in used} == {4} and len(used) > 4


def random_factors(rows, columns, count=(3, 1, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(sum(count), size, generator=generator) for size in (rows, columns))
    return Factors(*sides, count)


@pytest.mark.parametrize(("rows", "columns"), [(40, 50), (2, 300), (300, 1), (4, 4)])
def test_projection_of_factors_is_that_of_whole_gradients(rows, columns):
    factors, projection = random_factors(rows, columns), TwoSided(64, seed=3)
    block = projection.of_factors("w", factors)
    assert block.shape == (3, 64)
    torch.testing.assert_close(block, projection.of_matrices("w", factors.whole()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block, TwoSided(64, seed=3).of_factors("w", factors))
    assert not torch.allclose(block, TwoSided(64, seed=4).of_factors("w", factors))
    assert not torch.allclose(block, TwoSided(64, seed=3).of_factors("v", factors))


def test_a_small_weight_is_kept_exactly():
    factors = random_factors(5, 7)
    block, whole = TwoSided(64).of_factors("w", factors), factors.whole().flatten(1)
    torch.testing.assert_close(block @ block.T, whole @ whole.T, rtol=1e-4, atol=1e-4)
    alone = TwoSided(64, together=False).of_factors("w", factors)
    assert alone.shape == whole.shape
    torch.testing.assert_close(alone.abs(), whole.abs())


def unbiased(sketch, whole, draws=400):
    """Asserts that inner products of sketches are those of ``whole`` (B P) on average over seeds."""
    products = torch.stack([block @ block.T for block in map(sketch, range(draws))]).double()
    error = products.mean(0) - whole.double() @ whole.double().T
    assert (error.abs() < 5 * products.std(0) / draws**0.5 + 1e-4).all()


def test_projected_sums_over_weights_keep_inner_products_on_average():
    parts = {"a": random_factors(12, 10), "b": random_factors(3, 40, seed=1), "c": random_factors(2, 1, seed=2)}

    def sketch(seed):
        return sum(TwoSided(16, seed).of_factors(name, factors) for name, factors in parts.items())

    unbiased(sketch, torch.cat([factors.whole().flatten(1) for factors in parts.values()], dim=1))


def test_rapid_in_keeps_inner_products_on_average_and_groups_all_numbers():
    parts = {"a": random_factors(12, 10), "b": random_factors(3, 4, seed=1)}

    def sketch(seed):
        return sum(RapidIn(dimension=16, seed=seed).project(name, f, tiny_batch()) for name, f in parts.items())

    unbiased(sketch, torch.cat([factors.whole().flatten(1) for factors in parts.values()], dim=1))


def test_rapid_in_is_layer_normed_and_shared_by_both_sides():
    model, batch = tiny_model(), tiny_batch()
    read = RapidIn(r"mlp\.up_proj", dimension=32)
    rows = only(read(model, batch, []))
    torch.testing.assert_close(only(read(model, replace(batch, side="query"), [])), rows)
    model.lm_head.weight.data *= 0.5
    names = choose_weights(model, r"mlp\.up_proj")
    norms = torch.stack([exact(model, batch, [name]).norm(dim=1) for name in names])
    assert norms.std(0).min() > 0
    single = only(RapidIn(names[0], dimension=10**6)(model, batch, []))
    torch.testing.assert_close(single.norm(dim=1), torch.ones(len(batch)))


@pytest.fixture
def trained(tmp_path):
    """A model that Adam has trained for three steps, and the optimizer, whose state lies in the folder."""
    return *trained_by_adam(tmp_path, "layers.1", weight_decay=0.0), tmp_path


def test_less_takes_the_step_of_adam_for_training_rows_alone(trained):
    model, optimizer, folder = trained
    batch = tiny_batch()
    names = choose_weights(model, r"layers\.1\.")
    less = AdamGradient(str(folder), r"layers\.1\.", dimension=None)
    steps, plain = only(less(model, batch, [])), only(less(model, replace(batch, side="query"), []))
    gradients = exact(model, batch, names)
    assert_close(plain, gradients)
    parameters = [dict(model.named_parameters())[name] for name in names]
    moments = {p: dict(optimizer.state[p]) for p in parameters}
    before = torch.cat([p.flatten() for p in parameters])
    for row, gradient in zip(steps, gradients, strict=True):
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            optimizer.state[p] = {k: v.clone() for k, v in moments[p].items()}
            p.grad = part.view_as(p).clone()
        optimizer.step()
        moved = torch.cat([p.detach().flatten() for p in parameters])
        torch.testing.assert_close(row, (before - moved) / 1e-3, rtol=1e-3, atol=2e-4)
        for p, old in zip(parameters, before.split([p.numel() for p in parameters]), strict=True):
            p.data.copy_(old.view_as(p))


def test_less_projects_both_sides_alike(trained):
    model, _, folder = trained
    rows = {}
    for dimension in (None, 4096):
        less = AdamGradient(str(folder), r"layers\.1\.mlp\.up_proj", dimension=dimension)
        sides = [only(less(model, replace(tiny_batch(), side=side), [])) for side in ("train", "query")]
        rows[dimension] = torch.cosine_similarity(sides[0].unsqueeze(1), sides[1], dim=2)
    torch.testing.assert_close(rows[4096], rows[None], rtol=1e-4, atol=1e-4)  # 48 x 32 numbers: kept exactly


def test_less_without_the_right_state_is_refused(trained, tmp_path):
    model, _, folder = trained
    with pytest.raises(UsageError, match="was not trained"):
        AdamGradient(str(folder), r"layers\.0\.")(model, tiny_batch(), [])
    with pytest.raises(UsageError, match="train.py"):
        AdamGradient(str(tmp_path / "nothing"))(model, tiny_batch(), [])
    wider = tiny_llama(vocab_size=model.config.vocab_size, width=64, layers=2)
    with pytest.raises(UsageError, match=r"up_proj.weight has shape \(48, 32\): it belongs to another model"):
        AdamGradient(str(folder), r"layers\.1\.mlp\.up_proj")(freeze(wider), tiny_batch(), [])


@pytest.mark.parametrize(
    ("architecture", "weights", "word"),
    [
        ("llama", "lora", "model.adapter"),
        ("llama", "no_such", "matches none"),
        ("llama", "(", "regular expression"),
        ("gpt2", "wpe", "cannot be computed for each sample"),
        ("mixtral", "experts", "cannot be computed for each sample"),
        ("opt", "embed_positions", "of a OPTLearnedPositionalEmbedding"),
    ],
)
def test_weights_that_cannot_be_read_are_reported(architecture, weights, word):
    with pytest.raises(UsageError, match=word):
        ParameterGradient(weights)(tiny_model(architecture), tiny_batch(), [])


def test_a_dimension_below_1_is_refused():
    with pytest.raises(UsageError, match="dimension"):
        ParameterGradient(dimension=0)
