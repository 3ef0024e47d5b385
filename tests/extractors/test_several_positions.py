"""Several positions of one site against the extractors that read one, and the mean over the text."""

import pytest
import torch

from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_positions import SeveralPositions
from extractors.sites.several_sites import SITES
from rept.errors import UsageError
from rept.types import Key
from tests.helpers.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("site", SITES)
def test_each_field_is_that_of_the_extractor_of_one_position(site):
    model, batch = tiny_model(), tiny_batch(pad=2)
    fields, positions = ("representation", "gradient"), ("last_prompt", "response_mean", "text_mean")
    signature = SeveralPositions(site, positions, fields)(model, batch, [1, -1])
    assert len(signature) == 2 * len(fields) * len(positions)
    for position in positions:
        for key, block in SITES[site](fields, position)(model, batch, [1, -1]).items():
            torch.testing.assert_close(signature[key._replace(field=f"{key.field}_{position}")], block)


def test_the_mean_over_the_text_leaves_out_padding_alone():
    model, batch = tiny_model(), tiny_batch(pad=3)
    read = ResidualStream(["representation"], "text_mean")
    block = read(model, batch, [2])[Key("residual_stream", 2, "representation")]
    states = model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states[2]
    for i, length in enumerate(batch.length.tolist()):
        torch.testing.assert_close(block[i], states[i, :length].mean(0))


def test_tokens_are_those_of_the_site():
    model, batch = tiny_model(), tiny_batch()
    tokens = SeveralPositions("mlp_output").all_positions(model, batch, [1])
    assert {key: block.shape for key, block in tokens.items()} == {
        key: block.shape for key, block in SITES["mlp_output"]().all_positions(model, batch, [1]).items()
    }


@pytest.mark.parametrize("setting", [{"site": "x"}, {"positions": ["x"]}, {"positions": []}, {"fields": ["x"]}])
def test_unknown_words_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        SeveralPositions(**setting)
