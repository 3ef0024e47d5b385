"""The virtual linear layer against its formula, from states at all positions."""

import pytest
import torch

from extractors.gradients.virtual_linear import VirtualLinear
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SITES
from rept.errors import UsageError
from rept.types import IGNORE, Key
from scorers.cosine import Cosine
from scorers.gradient_representation import GradientRepresentation
from tests.helpers.tiny import WIDTH, tiny_batch, tiny_model


@pytest.mark.parametrize("site", SITES)
def test_the_whole_matrix_equals_its_formula(site):
    model, batch = tiny_model(), tiny_batch(pad=1)
    signature = VirtualLinear(site, dimension=None)(model, batch, [1, -1])
    tokens = SITES[site]().all_positions(model, batch, [1, -1])
    assert len(signature) == 2
    for (name, layer, field), block in signature.items():
        assert field == "outer"
        for i in range(len(batch)):
            expected = torch.zeros(WIDTH, WIDTH)
            for t in range(batch.labels.shape[1] - 1):
                if batch.labels[i, t + 1] != IGNORE:
                    g, h = (tokens[Key(name, layer, f)][i, t] for f in ("gradient", "representation"))
                    expected += torch.outer(g / g.norm(), h / h.norm())
            torch.testing.assert_close(block[i].view(WIDTH, WIDTH), expected, rtol=1e-4, atol=1e-5)


def test_with_one_response_token_it_is_the_gradient_representation_product():
    model, batch = tiny_model(), tiny_batch([(3, 1), (6, 1), (2, 1)])
    outer = VirtualLinear(dimension=None)(model, batch, [2])
    plain = ResidualStream()(model, batch, [2])
    side = {key.field: block for key, block in (outer | plain).items()}
    torch.testing.assert_close(Cosine(["outer"])(side, side), GradientRepresentation()(side, side))


def test_projected_it_is_near_and_exact_where_nothing_is_lost():
    model, batch = tiny_model(), tiny_batch([(3, 8), (6, 5), (2, 12), (4, 4)])
    score = {}
    for dimension in (None, WIDTH * WIDTH, 400):
        (block,) = VirtualLinear(dimension=dimension)(model, batch, [2]).values()
        score[dimension] = Cosine(["outer"])({"outer": block}, {"outer": block})
    torch.testing.assert_close(score[WIDTH * WIDTH], score[None], rtol=1e-4, atol=1e-5)
    assert 0 < (score[400] - score[None]).abs().max() < 0.4


@pytest.mark.parametrize("setting", [{"site": "x"}, {"dimension": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        VirtualLinear(**setting)
