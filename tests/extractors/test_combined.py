"""Several extractors in one signature."""

from __future__ import annotations

import pytest
import torch

from extractors.baselines.text_bytes import TextBytes
from extractors.baselines.text_length import TextLength
from extractors.combined import Combined
from extractors.gradients.adam_gradient import AdamGradient
from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.run.rescore import score
from rept.store.reader import AttributionStore
from rept.types import Key
from tests.helpers.tiny import tiny_batch, tiny_model


@pytest.fixture(scope="module")
def done(material, tmp_path_factory) -> Trace:
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    return attribute(material.config(folder, "extractor=combined", "scorer=joined"), show_result=False)


def test_texts_are_beside_the_states_of_every_layer(done):
    store = AttributionStore(done.folder.store, "train")
    fields = ("representation_last_prompt", "representation_text_mean", "text")
    assert set(store.keys) == {Key("residual_stream", 2, field) for field in fields}


def test_each_part_gives_what_it_gives_alone(done, material, tmp_path):
    store = AttributionStore(done.folder.store, "train")
    words = ["extractor=several_positions", "scorer=standout", "tokens.hits=0"]
    fields = "scorer.fields=[representation_last_prompt,representation_text_mean]"
    attribute(material.config(tmp_path / "states", *words, fields), show_result=False)
    texts = ["extractor=text_bytes", "scorer=bm25", "tokens.hits=0"]
    attribute(material.config(tmp_path / "texts", *texts), show_result=False)
    rows = store.attributed
    for key in store.keys:
        folder = tmp_path / ("texts" if key.field == "text" else "states") / "store"
        alone = AttributionStore(folder, "train")
        (own,) = (one for one in alone.keys if one.field == key.field)
        assert torch.equal(store.read(rows, [key])[key], alone.read(rows, [own])[own])


def test_texts_have_no_share_of_the_cosine(done):
    blocks = done.provenance["blocks"]
    assert {path.split("/")[-1] for path in blocks} == {"representation_last_prompt", "representation_text_mean"}
    assert sum(block["share"] for block in blocks.values()) == pytest.approx(1)


def test_hits_tokens_and_behaviours_of_a_run(done):
    assert done.scored(0) and done.behaviours
    assert done.best(0).score > done.hits(0)[-1].score


def test_the_words_of_states_and_words_cannot_be_calibrated_alone(done, tmp_path):
    run, rate = str(done.folder.path), "calibration.rate=0.3"
    assert score([run, rate, f"out={tmp_path / 'both'}"]).metrics["calibration"]
    with pytest.raises(UsageError, match="Scores of text cannot be calibrated here"):
        score([run, "scorer=bm25", rate, f"out={tmp_path / 'words'}"])


def test_what_is_not_comparable_or_symmetric_in_one_is_not_in_several():
    for parts, expected in (
        ([ResidualStream(), TextBytes()], (True, True)),  # bytes are never compared by their cosines
        ([ResidualStream(), TextLength()], (False, True)),
        ([ResidualStream(["representation"]), AdamGradient()], (False, False)),
    ):
        both = Combined(parts)
        assert (both.comparable, both.symmetric) == expected


def test_several_blocks_of_a_field_beside_a_layer_are_refused():
    for each in (False, True):
        weights = ParameterGradient(r"layers\.0\.self_attn\.[qk]_proj", dimension=16, each=each)
        both = Combined([ResidualStream(["representation"]), weights])
        if each:
            with pytest.raises(UsageError, match="but got 2 of gradient: set each=false"):
                both(tiny_model(), tiny_batch(), [1])
        else:
            assert {key.field for key in both(tiny_model(), tiny_batch(), [1])} == {"representation", "gradient"}


def test_extractors_without_layers_keep_their_keys(material, tmp_path):
    both = Combined([TextBytes(), TextLength()])
    assert both.fields == ("text", "length") and both.fit_rows == 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "to list extractors"),
        (["residual_stream"], "to list extractors"),
        ([ResidualStream(), SeveralSites()], "fields of different names"),
    ],
)
def test_what_cannot_be_combined_is_refused(parts, words):
    with pytest.raises(UsageError, match=words):
        Combined(parts)


def test_token_scores_need_an_extractor_that_reads_all_positions():
    with pytest.raises(UsageError, match="reads all positions"):
        Combined([TextBytes()]).all_positions(None, None, [1])
