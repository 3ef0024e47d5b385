"""EK-FAC against its own formula computed densely, and against kronfluence's own scores."""

from __future__ import annotations

import copy

import pytest
import torch

from extractors.gradients.ekfac_gradient import EKFACGradient, _collate, _sample, _task
from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.weights import gradient_factors
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.run.pipeline import attribute
from rept.types import Key
from tests.helpers.tiny import tiny_batch, tiny_model

pytest.importorskip("kronfluence", reason="the extra `ekfac` is not installed")

LENGTHS = [(3, 4), (7, 2), (5, 9), (4, 6), (2, 8)]
KEY = Key("parameters", 0, "gradient")
LAYER = r"layers\.1\.(self_attn\.q_proj|mlp\.down_proj)"


def fitted(model, **settings):
    extractor = EKFACGradient(**{"empirical": True, "weights": LAYER, "dimension": None} | settings)
    extractor.fit(model, [tiny_batch(LENGTHS)])
    return extractor


@pytest.fixture(scope="module")
def whitened():
    """A model, and an extractor fitted to two of its layers."""
    torch.set_num_threads(1)
    model = tiny_model()
    before = {name: type(module) for name, module in model.named_modules()}
    extractor = fitted(model)
    assert {name: type(module) for name, module in model.named_modules()} == before  # kronfluence replaced a copy's
    return model, extractor


def scores(extractor, model, query):
    return extractor(model, tiny_batch(LENGTHS), [])[KEY] @ extractor(model, query, [])[KEY].T


def test_scores_are_those_of_the_dense_formula(whitened):
    """Second moments of inputs and slopes, their eigenvectors, mean squares of rotated gradients: all in float64."""
    (model, extractor), batch, query = whitened, tiny_batch(LENGTHS), tiny_batch(LENGTHS[:3], seed=9)
    got = scores(extractor, model, query)
    expected = torch.zeros_like(got, dtype=torch.float64)
    names = ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    train, asked = (gradient_factors(model, one, names) for one in (batch, query))
    for name in names:
        left, right = train[name].left.double(), train[name].right.double()
        real = torch.cat([torch.arange(batch.input_ids.shape[1]) < n for n in batch.length])
        if len(left) != len(real):  # the last block is read at fewer positions
            real = torch.ones(len(left), dtype=torch.bool)
        q_left = torch.linalg.eigh(left.T @ left)[1]
        q_right = torch.linalg.eigh(right[real].T @ right[real])[1]
        rotated = q_left.T @ train[name].whole().double() @ q_right  # (B M K)
        eigenvalues = rotated.square().mean(0)
        inverse = 1 / (eigenvalues + 0.1 * eigenvalues.mean())
        rotated_query = q_left.T @ asked[name].whole().double() @ q_right
        expected += torch.einsum("bmk,mk,qmk->bq", rotated, inverse, rotated_query)
    assert (got - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")  # kronfluence makes one by its old name
def test_scores_are_kronfluence_s_own(whitened, tmp_path):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    (model, extractor), batch, query = whitened, tiny_batch(LENGTHS), tiny_batch(LENGTHS[:3], seed=9)
    got = scores(extractor, model, query)
    task = _task(["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
    analyzer = Analyzer(
        "x", prepare_model(copy.deepcopy(model), task), task, cpu=True, disable_tqdm=True, output_dir=str(tmp_path)
    )
    loader = DataLoaderKwargs(collate_fn=_collate)
    rows, asked = ([_sample(one, i) for i in range(len(one))] for one in (batch, query))
    arguments = FactorArguments(use_empirical_fisher=True)
    analyzer.fit_all_factors("f", rows, 5, dataloader_kwargs=loader, factor_args=arguments)
    analyzer.compute_pairwise_scores(
        "s", "f", asked, rows, 3, 5, dataloader_kwargs=loader, score_args=ScoreArguments(damping_factor=None)
    )
    expected = analyzer.load_pairwise_scores("s")["all_modules"].T
    assert (got - expected).abs().max() < 2e-3 * expected.abs().max()


def test_the_curvature_reorders_what_plain_gradients_say(whitened):
    (model, extractor), query = whitened, tiny_batch(LENGTHS[:3], seed=9)
    plain = scores(ParameterGradient(LAYER, dimension=None), model, query)
    together = torch.stack([plain.flatten(), scores(extractor, model, query).flatten()])
    assert torch.corrcoef(together)[0, 1] < 0.98


def test_strong_damping_gives_plain_gradients():
    model, query = tiny_model(), tiny_batch(LENGTHS[:3], seed=9)
    weight = r"layers\.1\.self_attn\.q_proj"
    plain = scores(ParameterGradient(weight, dimension=None), model, query)
    damped = scores(fitted(model, weights=weight, damping=1e6), model, query)
    assert torch.allclose(damped / damped.abs().max(), plain / plain.abs().max(), atol=1e-3)


def test_drawn_responses_are_the_same_for_the_same_seed_and_leave_the_generator_alone():
    model, query = tiny_model(), tiny_batch(LENGTHS[:3], seed=9)
    before = torch.random.get_rng_state()
    one, same, other = (
        scores(fitted(model, empirical=False, seed=seed, weights="layers.1.self_attn.q_proj"), model, query)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.allclose(one, other, rtol=1e-2)


@pytest.mark.parametrize("wrong", [{"damping": 0}, {"rows": 0}, {"dimension": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="extractor"):
        EKFACGradient(**wrong)


def test_what_cannot_be_read_is_reported():
    with pytest.raises(UsageError, match="not fitted"):
        EKFACGradient()(tiny_model(), tiny_batch(LENGTHS), [])
    with pytest.raises(UsageError, match="matches no linear layer"):
        fitted(tiny_model(), weights="embed_tokens")


def test_a_run_fits_on_drawn_rows_and_the_same_again_reuses(material, tmp_path, capsys):
    left_out = ("layers", "tokens.hits")
    words = [a for a in material.arguments(tmp_path / "run") if not a.startswith(left_out)]
    config = compose(AttributeConfig, [*words, "tokens.hits=0", "experiment=ekfac", "extractor.rows=8"])
    trace = attribute(config, show_result=False)
    assert "learns from 8 training rows" in capsys.readouterr().out
    first = [hit.score for hit in trace.hits(0)]
    again = attribute(config, show_result=False)
    assert "learns" not in capsys.readouterr().out
    assert [hit.score for hit in again.hits(0)] == first
