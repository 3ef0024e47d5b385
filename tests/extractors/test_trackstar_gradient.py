"""TrackStar against its formula in float64, written with autograd and loops; the whole experiment too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extractors.gradients.projection import TwoSided
from extractors.gradients.trackstar_gradient import TrackStarGradient, by_second_moment
from rept.config.compose import compose
from rept.config.schema import AttributeConfig, TrainConfig
from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.loading import load_model, load_tokenizer
from rept.model.optimizer_state import load_optimizer_state
from rept.run.pipeline import attribute
from rept.run.rescore import stored_data
from rept.training.finetune import train_model
from scorers.whitened import Whitened
from tests.conftest import Material
from tests.evaluation.test_proof import recipe
from tests.helpers.tiny import tiny_batch, trained_by_adam


def slow(model, batch, state) -> torch.Tensor:
    """(B P) float64: ``grad L(z) / sqrt(V)`` of all weights, one sample and one number at a time."""
    model = model.double()
    named = [(name, p.requires_grad_()) for name, p in model.named_parameters() if name in state]
    rows = []
    for ids, labels in oracle.samples(batch):
        loss = oracle.mean_loss(model(input_ids=ids[None]).logits[0], labels)
        row: list[float] = []
        for (name, _), gradient in zip(named, torch.autograd.grad(loss, [p for _, p in named]), strict=True):
            moment, correction = state[name]["exp_avg_sq"].flatten().tolist(), 1 - 0.9 ** state[name]["step"]
            for g, v in zip(gradient.flatten().tolist(), moment, strict=True):
                row.append(g / (v / correction) ** 0.5 if v else 0.0)
        rows.append(row)
    model.float().requires_grad_(False)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def trained(tmp_path: Path):
    """A model after three steps of Adam, and the folder with the optimizer's state."""
    return trained_by_adam(tmp_path)[0], tmp_path


@pytest.mark.parametrize("side", ["train", "query"])
def test_gradients_are_divided_by_the_root_of_second_moments_on_both_sides(trained, side):
    model, folder = trained
    batch = replace(tiny_batch(), side=side)
    (block,) = TrackStarGradient(str(folder), "all", dimension=None)(model, batch, []).values()
    expected = slow(model, batch, load_optimizer_state(folder))
    error = (block.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert block.shape == expected.shape and error.max() < 1e-4


def test_the_projection_is_that_of_the_corrected_gradient_of_each_weight(trained):
    model, folder = trained
    state, batch = load_optimizer_state(folder), tiny_batch()
    (block,) = TrackStarGradient(str(folder), "all", dimension=64, seed=2)(model, batch, []).values()
    expected, projection = torch.zeros(len(batch), 64, dtype=torch.float64), TwoSided(64, 2)
    whole = slow(model, batch, state)
    sizes = [state[name]["exp_avg_sq"].numel() for name, _ in model.named_parameters() if name in state]
    shapes = [(name, state[name]["exp_avg_sq"].shape) for name, _ in model.named_parameters() if name in state]
    for (name, shape), part in zip(shapes, whole.split(sizes, dim=1), strict=True):
        matrices = part.view(len(batch), shape[0], -1)
        expected += projection.of_matrices(name, matrices.float()).double()
    torch.testing.assert_close(block.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_no_second_moment_means_no_contribution_and_tiny_ones_stay_finite():
    state = {"exp_avg_sq": torch.tensor([[0.0, 4e-42, 9.0]]), "step": 1, "betas": [0.9, 0.9]}
    found = by_second_moment(torch.tensor([[[5.0, 1e-21, 3.0]]]), state)
    assert found.isfinite().all() and found[0, 0, 0] == 0
    assert found[0, 0, 2] == pytest.approx(3 / (9 / (1 - 0.9)) ** 0.5)


def test_weights_without_a_state_are_refused(trained, tmp_path: Path):
    model, folder = trained
    with pytest.raises(UsageError, match=r"needs the optimizer's state, .* train.py"):
        TrackStarGradient(str(tmp_path / "nothing"))(model, tiny_batch(), [])
    state = load_optimizer_state(folder)
    del state["lm_head.weight"]
    extractor = TrackStarGradient(str(folder), "all")
    extractor._state = state
    with pytest.raises(UsageError, match="has nothing for lm_head.weight"):
        extractor(model, tiny_batch(), [])


def test_with_the_second_moment_of_training_rows_it_is_the_paper_s_formula():
    """``cos(R^(-1/2) x, R^(-1/2) y)`` by eigenvectors in float64; R is shrunk, as its inverse must exist."""
    generator = torch.Generator().manual_seed(0)
    train, query = (torch.randn(n, 6, generator=generator) + 2 for n in (20, 3))  # far from the origin
    scorer = Whitened(["gradient"], shrinkage=0.2, centre=False)
    scorer.fit([{"gradient": train[:8]}, {"gradient": train[8:]}])
    x, y = train.double(), query.double()
    second = x.T @ x / len(x)
    shrunk = 0.8 * second + 0.2 * second.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(shrunk)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    expected = torch.cosine_similarity((x @ root).unsqueeze(1), (y @ root).unsqueeze(0), dim=2)
    torch.testing.assert_close(
        scorer({"gradient": train}, {"gradient": query}).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_the_experiment_ranks_by_the_formula(material: Material, tmp_path: Path):
    train_model(compose(TrainConfig, recipe(material, tmp_path / "model")), ())
    words = [word for word in material.arguments(tmp_path / "run") if not word.startswith(("layers", "model.path"))]
    words += ["experiment=trackstar", f"model.path={tmp_path / 'model'}", "extractor.weights=layers.1.mlp"]
    trace = attribute(compose(AttributeConfig, [*words, "extractor.dimension=null", "top_k=41"]), show_result=False)
    model, data = load_model(str(tmp_path / "model")), stored_data(trace.folder, trace.config)
    data.attach(load_tokenizer(str(tmp_path / "model")))
    state = load_optimizer_state(tmp_path / "model")
    chosen = {name: one | {"betas": [0.9, 0.9]} for name, one in state.items() if "layers.1.mlp" in name}
    for one in chosen.values():  # the slow form has its own bias correction, which scales all numbers alike
        assert one["step"] == next(iter(chosen.values()))["step"]
    signature = {}
    for side, rows in (("train", range(41)), ("query", range(5))):
        for batch in filter(len, data.batches(side, rows)):
            signature |= {
                (side, row): vector for row, vector in zip(batch.row.tolist(), slow(model, batch, chosen), strict=True)
            }
    for query in range(len(trace.queries)):
        hits = trace.hits(query)
        assert len(hits) == 37
        for hit in hits:
            expected = torch.cosine_similarity(signature["train", hit.row], signature["query", query], dim=0)
            assert hit.score == pytest.approx(expected.item(), abs=2e-3)  # stored in float16
