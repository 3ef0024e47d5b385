"""DataInf and LiSSA against dense linear algebra, one sample at a time."""

import pytest
import torch

from extractors.gradients.parameter_gradient import ParameterGradient
from rept.errors import UsageError
from rept.ranking.rank import rank
from rept.types import Key
from scorers.datainf import DataInf
from scorers.lissa import LiSSA
from tests.helpers.stores import make, signatures
from tests.helpers.tiny import tiny_batch, tiny_model
from tests.scorers.test_centred import blocks

LENGTHS = [(3, 4), (7, 2), (5, 9), (4, 6), (2, 8)]


def gradients():
    """Each LoRA weight's gradients of training rows and queries: {name: (train, query)}, float64."""
    model = tiny_model(lora=True)
    read = ParameterGradient(r"layers\.0\..*lora", dimension=None, each=True)
    train = read(model, tiny_batch(LENGTHS), [])
    query = read(model, tiny_batch(LENGTHS[:3], seed=9), [])
    return {key.site: (block.double(), query[key].double()) for key, block in train.items()}


def scored(scorer, train, query, size=2):
    scorer.fit(list(blocks({"gradient": train.float()}, size)))
    return scorer({"gradient": train.float()}, {"gradient": query.float()})


def assert_near(score, expected, tolerance=1e-4):
    assert (score - expected).abs().max() <= tolerance * expected.abs().max()


def test_datainf_is_the_mean_of_inverses():
    for train, query in gradients().values():
        damping = 0.1 * train.square().sum(1).mean() / train.shape[1]
        identity = torch.eye(train.shape[1], dtype=torch.float64)
        mean = sum(torch.linalg.inv(torch.outer(g, g) + damping * identity) for g in train) / len(train)
        assert_near(scored(DataInf(), train, query), train @ mean @ query.T)


def test_datainf_is_the_paper_s_sum_with_its_sign_turned():
    train, query = next(iter(gradients().values()))
    damping = 0.1 * train.square().sum() / train.numel()
    expected = torch.zeros(len(train), len(query), dtype=torch.float64)
    for k, g_k in enumerate(train):
        for j, v in enumerate(query):
            terms = [(v @ g) / (damping + g @ g) * (g @ g_k) for g in train]
            expected[k, j] = -(sum(terms) / len(train) - v @ g_k) / damping
    assert_near(scored(DataInf(), train, query), expected)


def hessian(train, damping=0.1):
    scale = damping * train.square().sum(1).mean() / train.shape[1]
    return train.T @ train / len(train) + scale * torch.eye(train.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_lissa_equals_its_recursion(iterations):
    for train, query in gradients().values():
        h = hessian(train)
        sigma = torch.linalg.matrix_norm(h, 2)
        for j, v in enumerate(query):
            r = v
            for _ in range(iterations):
                r = v + r - h @ r / sigma
            score = scored(LiSSA(iterations=iterations), train, query)
            assert_near(score[:, j], train @ r / sigma)


def test_lissa_nears_the_inverse_hessian():
    train, query = next(iter(gradients().values()))
    exact = train @ torch.linalg.solve(hessian(train, 10.0), query.T)
    assert_near(scored(LiSSA(damping=10.0, iterations=3000), train, query), exact)


@pytest.mark.parametrize("scorer", [DataInf(), LiSSA()], ids=["datainf", "lissa"])
def test_blocks_do_not_matter_and_zero_gradients_give_zero(scorer):
    train, query = next(iter(gradients().values()))
    train[1], query[2] = 0, 0
    one, other = (scored(scorer, train, query, size) for size in (1, 5))
    assert_near(one, other.double(), 1e-6)
    assert (one[1] == 0).all() and (one[:, 2] == 0).all()
    assert (scored(scorer, torch.zeros(4, 3), torch.ones(2, 3)) == 0).all()


def test_datainf_needs_the_rows_twice():
    with pytest.raises(RuntimeError, match="second time"):
        DataInf().fit(iter([{"gradient": torch.ones(2, 3)}]))


@pytest.mark.parametrize("make", [lambda: DataInf(0), lambda: LiSSA(0), lambda: LiSSA(iterations=-1)])
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(UsageError, match="damping"):
        make()


def test_ranking_hands_over_the_rows_as_often_as_they_are_asked_for(tmp_path):
    key = Key("layers.0.weight", 0, "gradient")
    signature = signatures(20, [key], width=6)
    store = make(tmp_path, signature, dtype="float32")
    query = {key: signatures(3, [key], width=6, seed=1)[key]}
    best = rank(store, query, DataInf(), top_k=20).best
    expected = scored(DataInf(), signature[key].double(), query[key].double())
    assert torch.equal(best.row, expected.argsort(dim=0, descending=True).T)
