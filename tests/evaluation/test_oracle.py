"""The oracle itself, against finite differences, torch's own formulas and properties of the last layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.architecture import Architecture
from rept.model.loading import to_float64
from rept.types import IGNORE
from tests.helpers import oracle_scores
from tests.helpers.tiny import LAYERS, WIDTH, tiny_batch, tiny_model


@pytest.mark.parametrize("site", ["residual_stream", "attention_output", "mlp_output"])
def test_gradients_are_the_losss_slope(site: str) -> None:
    model = to_float64(tiny_model("gpt2"))  # whose norms stay in float64, unlike Llama's
    input_ids, labels = next(oracle.samples(tiny_batch()))
    states = oracle.states(model, input_ids, labels, 2, site)
    direction = torch.randn(len(input_ids), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(step: float) -> torch.Tensor:
        def push(module, args, output):
            pushed = (output[0] if isinstance(output, tuple) else output) + step * direction
            return (pushed, *output[1:]) if isinstance(output, tuple) else pushed

        handle = getattr(Architecture.of(model), site)(2).register_forward_hook(push)
        logits = model(input_ids=input_ids[None]).logits[0]
        handle.remove()
        return cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE)

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    torch.testing.assert_close((states.gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)


def test_at_the_last_layer_only_predicting_positions_have_a_gradient() -> None:
    input_ids, labels = next(oracle.samples(tiny_batch([(5, 3)])))
    states = oracle.states(tiny_model(), input_ids, labels, -1)
    assert states.gradient.norm(dim=-1).gt(0).tolist() == [False] * 4 + [True] * 3 + [False]


@pytest.mark.parametrize("site", ["residual_stream", "mlp_output"])
def test_small_gradients_do_not_underflow_in_half_precision(site: str) -> None:
    half, single = tiny_model(dtype=torch.float16), tiny_model()
    for model in (half, single):
        model.lm_head.weight.data *= 1e-4  # gradients of 1e-8 and below
    ids, labels = next(oracle.samples(tiny_batch()))
    found, exact = (oracle.states(model, ids, labels, 2, site).gradient for model in (half, single))
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_signature_is_read_where_the_response_is_predicted() -> None:
    states = oracle.States(torch.arange(5.0)[:, None], 10 * torch.arange(5.0)[:, None])
    labels = torch.tensor([IGNORE, IGNORE, 7, 8, IGNORE])
    assert oracle.signature(states, labels) == (1.0, 10.0)
    assert oracle.signature(states, labels, "response_mean") == (1.5, 15.0)
    assert oracle.signature(states, labels, "text_mean") == (2.0, 20.0)


@pytest.mark.parametrize("layer", [1, LAYERS])
def test_any_module_can_be_read(layer: int) -> None:
    model = tiny_model()
    ids, labels = next(oracle.samples(tiny_batch()))
    named = oracle.states(model, ids, labels, layer, "mlp_output")
    given = oracle.states(model, ids, labels, layer, model.model.layers[layer - 1].mlp)
    assert all(torch.equal(one, other) for one, other in zip(named, given, strict=True))


def test_the_embedding_can_be_read() -> None:
    model = tiny_model()
    ids, labels = next(oracle.samples(tiny_batch()))
    states = oracle.states(model, ids, labels, 1, model.model.embed_tokens)
    embedded = model.model.embed_tokens(ids).detach().requires_grad_()
    loss = cross_entropy(model(inputs_embeds=embedded[None]).logits[0, :-1], labels[1:], ignore_index=IGNORE)
    torch.testing.assert_close(states, oracle.States(embedded.detach(), torch.autograd.grad(loss, embedded)[0]))


def test_a_module_that_runs_twice_is_no_site() -> None:
    model = tiny_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    ids, labels = next(oracle.samples(tiny_batch()))
    with pytest.raises(UsageError, match="Expected LlamaMLP to run once in a forward pass, but got 2 runs"):
        oracle.states(model, ids, labels, 1, model.model.layers[0].mlp)


def test_the_loss_is_torch_s_and_the_target_logit_one_of_its_two_terms() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([IGNORE, IGNORE, 3, 1, IGNORE])
    assert oracle.mean_loss(logits, labels) == pytest.approx(float(cross_entropy(logits[1:3], labels[2:4])))
    term = logits[1:3].logsumexp(1).mean() - oracle.mean_target_logit(logits, labels)
    assert oracle.mean_loss(logits, labels) == pytest.approx(float(term))
    kinds = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
    assert {kind: oracle.mean_loss(logits.to(kind), labels).dtype for kind in kinds} == kinds


def test_scores_are_the_formula_of_torch() -> None:
    h, h_query, g, g_query = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).double()
    train, query = oracle.States(h, g), oracle.States(h_query, g_query)
    expected = cosine_similarity(torch.cat([h, g]), torch.cat([h_query, g_query]), dim=0)
    assert oracle_scores.pair_score(train, query) == pytest.approx(float(expected))
    assert oracle_scores.pair_score(oracle.States(torch.zeros(8), torch.zeros(8)), query) == 0


def test_token_influence_is_the_papers_matrix_product() -> None:
    model = tiny_model()
    (ids, labels), (query_ids, query_labels) = oracle.samples(tiny_batch([(4, 3), (6, 5)]))
    train, query = (oracle.states(model, *one, 2) for one in ((ids, labels), (query_ids, query_labels)))
    published = normalize(query.gradient[6:], dim=-1).sum(0) @ normalize(train.gradient, dim=-1).T
    found = oracle_scores.token_scores(train, query, query_labels)
    assert found == pytest.approx(published.tolist(), abs=1e-6)
    anchored = published * cosine_similarity(train.representation, query.representation[5], dim=-1)
    found = oracle_scores.token_scores(train, query, query_labels, form="anchored")
    assert found == pytest.approx(anchored.tolist(), abs=1e-6)
    agreement = normalize(train.gradient, dim=-1) @ normalize(query.gradient[5:-1], dim=-1).T
    matched = agreement.amax(1) * cosine_similarity(train.representation, query.representation[5], dim=-1)
    found = oracle_scores.token_scores(train, query, query_labels, form="matched")
    assert found == pytest.approx(matched.tolist(), abs=1e-6)


def test_adjacent_cosine_compares_each_layer_with_the_next() -> None:
    model, prompt = tiny_model(), torch.tensor([3, 1, 4, 1, 5])
    hidden = model(prompt[None], output_hidden_states=True).hidden_states
    ends = torch.stack([layer[0, -1] for layer in hidden[1:]])  # hidden[0] is the embedding, before any layer
    expected = cosine_similarity(ends[:-1], ends[1:])
    assert len(expected) == LAYERS - 1
    assert oracle_scores.adjacent_cosine(model, prompt) == pytest.approx(expected.tolist())
