"""Every scorer compared with scikit-learn and a plain double loop."""

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
from torch.nn.functional import cosine_similarity as torch_cosine

from rept.errors import UsageError
from rept.ranking.scorer import Scorer
from scorers.block_cosine import BlockCosine
from scorers.cosine import Cosine, cosine
from scorers.distance import Distance
from scorers.gradient_representation import GradientRepresentation, gradient_representation
from scorers.inner_product import InnerProduct

SCORERS = [Cosine(), Cosine(["representation"]), InnerProduct(), GradientRepresentation(), BlockCosine(0.3), Distance()]


def fields(rows, seed, widths=(16, 12), scales=(200.0, 1e-4)):
    generator = torch.Generator().manual_seed(seed)
    h, g = (torch.randn(rows, width, generator=generator) * scale for width, scale in zip(widths, scales, strict=True))
    return {"representation": h, "gradient": g}


def plain(scorer, train, query):
    """The score of one training row and one query, in float64."""
    h, g, h_query, g_query = (side[name].double() for side in (train, query) for name in ("representation", "gradient"))
    match scorer:
        case Cosine(needs=("representation",)):
            return h @ h_query / (h.norm() * h_query.norm())
        case Cosine():
            return (
                torch.cat([h, g])
                @ torch.cat([h_query, g_query])
                / (torch.cat([h, g]).norm() * torch.cat([h_query, g_query]).norm())
            )
        case InnerProduct():
            return torch.cat([h, g]) @ torch.cat([h_query, g_query])
        case Distance():
            return -(torch.cat([h, g]) - torch.cat([h_query, g_query])).norm()
        case GradientRepresentation():
            outer, outer_query = torch.outer(g, h).flatten(), torch.outer(g_query, h_query).flatten()
            return outer @ outer_query / (outer.norm() * outer_query.norm())
        case BlockCosine():
            cosines = torch_cosine(h, h_query, dim=0), torch_cosine(g, g_query, dim=0, eps=1e-30)
            return scorer.alpha * cosines[0] + (1 - scorer.alpha) * cosines[1]


@pytest.mark.parametrize("scales", [(200.0, 1e-4), (1.0, 1.0), (1e-3, 1e-25)])
@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_against_a_double_loop(scorer, scales):
    train, query = fields(7, seed=0, scales=scales), fields(5, seed=1, scales=scales)
    expected = torch.tensor(
        [
            [
                plain(scorer, {k: v[i] for k, v in train.items()}, {k: v[j] for k, v in query.items()}).item()
                for j in range(5)
            ]
            for i in range(7)
        ]
    )
    size = expected.abs().max()
    torch.testing.assert_close(scorer(train, query) / size, expected / size, rtol=0, atol=2e-6)


def test_against_scikit_learn():
    train, query = fields(20, seed=0, scales=(1, 1)), fields(9, seed=1, scales=(1, 1))
    x, y = torch.cat(list(train.values()), dim=1), torch.cat(list(query.values()), dim=1)
    torch.testing.assert_close(Cosine()(train, query), torch.from_numpy(cosine_similarity(x, y)))
    torch.testing.assert_close(InnerProduct()(train, query), torch.from_numpy(linear_kernel(x, y)))


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_zero_vectors_give_zero(scorer):
    train, query = fields(3, seed=0), fields(3, seed=1)
    for side in (train, query):
        for block in side.values():
            block[1] = 0
    score = scorer(train, query)
    assert score.isfinite().all()
    assert (score[1] == 0).all() and (score[:, 1] == 0).all()
    assert (score[[0, 2]][:, [0, 2]] != 0).all()


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_order_of_rows_does_not_matter(scorer):
    train, query = fields(9, seed=0), fields(5, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = {name: block[order] for name, block in train.items()}
    torch.testing.assert_close(scorer(shuffled, query), scorer(train, query)[order])


def test_scale_of_rows_does_not_matter_to_cosines():
    train, query = fields(9, seed=0), fields(5, seed=1)
    louder = {name: 1e6 * block for name, block in train.items()}
    for scorer in SCORERS:
        if not isinstance(scorer, InnerProduct | Distance):
            torch.testing.assert_close(scorer(louder, query), scorer(train, query))


def test_a_cosine_keeps_nothing_of_earlier_queries():
    train, scorer = fields(9, seed=0), Cosine()
    for seed in (1, 2, 1):
        query = fields(5, seed=seed)
        torch.testing.assert_close(scorer(train, query), Cosine()(train, query), atol=0, rtol=0)
        torch.testing.assert_close(scorer(train, query), scorer(train, dict(query)), atol=0, rtol=0)


def test_the_distance_of_near_rows_is_exact_in_blocks_of_any_size():
    """Rows of norm 240 at a distance of 0.1, as those of almost equal texts."""
    generator = torch.Generator().manual_seed(0)
    row = 30 * torch.randn(64, generator=generator)
    train, query = (row + 0.01 * torch.randn(count, 64, generator=generator) for count in (60, 5))
    expected = -(train.double()[:, None] - query.double()).norm(dim=-1).float()
    for size in (1, 7, 60):
        found = [Distance(["a"])({"a": part}, {"a": query}) for part in train.split(size)]
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", [1e-36, 1e-30, 1e-21, 1e-16, 1e16, 1e19, 1e21, 1e30, 1e36])
def test_cosines_of_rows_whose_squares_float32_cannot_hold(norm):
    train, query = (torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    train[2], query[3] = train[2] * norm, query[3] * norm
    x, y = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (train, query))
    torch.testing.assert_close(cosine([train], [query]), (x @ y.T).float())


def test_scores_of_the_smallest_numbers_are_finite():
    smallest = torch.full((2, 4), torch.finfo(torch.float32).smallest_normal / 2**20)
    assert cosine([smallest], [smallest]).isfinite().all()
    assert cosine([torch.ones(2, 4)], [smallest]).abs().max() <= 1


def test_the_gradient_has_no_effect_on_the_cosine_of_the_concatenation_and_one_on_the_product():
    train, query = fields(9, seed=0), fields(5, seed=1)
    other = {**train, "gradient": -train["gradient"]}
    torch.testing.assert_close(Cosine()(train, query), Cosine()(other, query), atol=1e-6, rtol=0)
    torch.testing.assert_close(GradientRepresentation()(train, query), -GradientRepresentation()(other, query))


@pytest.mark.parametrize("score", [lambda x, y: cosine([x], [y]), lambda x, y: gradient_representation(x, x, y, y)])
def test_blocks_of_two_widths_are_refused(score):
    with pytest.raises(ValueError, match=r"of one width D, but got \(4, 3\) and \(2, 5\)"):
        score(torch.ones(4, 3), torch.ones(2, 5))


def test_alpha_out_of_range_is_refused():
    with pytest.raises(UsageError, match="between 0 and 1, but got 1.5"):
        BlockCosine(alpha=1.5)


def test_a_scorer_is_a_class_with_one_method():
    class Nearest(Scorer):
        needs = ("representation",)

        def __call__(self, train, query):
            return -torch.cdist(train["representation"], query["representation"])

    assert Nearest()(fields(3, seed=0), fields(2, seed=1)).shape == (3, 2)
    with pytest.raises(TypeError, match="abstract"):
        Scorer()
