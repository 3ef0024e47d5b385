"""python -m rept verify: passes a sound model, and catches a planted batch fault and a planted template fault."""

from __future__ import annotations

import pytest
import torch

from extractors.sites.contrastive import Contrastive
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.__main__ import dispatch
from rept.errors import UsageError
from rept.evaluation.verify import checks, template_checks
from rept.model.loading import load_model, load_tokenizer
from tests.helpers import templates


@pytest.fixture
def parts(material):
    from datamodules.instructions import InstructionData

    module = InstructionData(str(material.train), str(material.queries), max_length=64, tokens_per_batch=256)
    module.attach(load_tokenizer(str(material.model)))
    return load_model(str(material.model)), ResidualStream(), module, [1, 2, 3], [0, 1, 2, 3, 4, 6]


def failed(found) -> list[str]:
    return [check.name for check in found if not check.passed]


def test_a_sound_model_passes(parts):
    found = checks(*parts)
    assert len(found) == 8 and failed(found) == []
    assert {"float32 against float64", "batch against single samples"} <= {check.name for check in found}


def test_nothing_is_not_verified(parts):
    with pytest.raises(UsageError, match="with nothing to compare, nothing is verified"):
        checks(*parts[:4], [])


def test_batches_of_one_are_held_against_the_oracle_alone(parts):
    parts[2].tokens_per_batch = 1
    found = [check.name for check in checks(*parts)]
    assert "batch against single samples" not in found and len(found) == 7


def test_a_model_whose_batch_differs_from_single_samples_is_caught(parts):
    model = parts[0]

    def neighbours(module, args, output):
        return output + 0.01 * output.mean(0, keepdim=True) * (len(output) > 1)

    handle = model.model.layers[0].register_forward_hook(neighbours)
    try:
        assert "batch against single samples" in failed(checks(*parts))
    finally:
        handle.remove()


def test_a_model_that_sees_its_padding_is_caught(parts):
    model = parts[0]

    def look_ahead(module, args, output):
        return output + 0.01 * output.mean(1, keepdim=True)

    handle = model.model.layers[0].register_forward_hook(look_ahead)
    try:
        assert "more padding on the right" in failed(checks(*parts))
    finally:
        handle.remove()


def test_a_model_with_nan_fails(parts):
    with torch.no_grad():
        parts[0].model.norm.weight[0] = float("nan")
    assert "batched path against the one-sample oracle" in failed(checks(*parts))


class Underflowing(ResidualStream):
    """Training row 3 has a gradient of 0 at every layer."""

    def __call__(self, model, batch, layers):
        blocks = super().__call__(model, batch, layers)
        for key, block in blocks.items():
            block[batch.row == 3] *= key.field != "gradient"
        return blocks


def test_a_row_whose_gradients_underflow_counts_once(parts):
    (found,) = (check for check in checks(parts[0], Underflowing(), *parts[2:]) if "underflows" in check.name)
    assert found.error == 1 and not found.passed


def test_a_template_with_two_bos_is_caught(parts):
    module = parts[2]
    kind = templates.KINDS["llama_3"]
    module.attach(templates.build(kind, "{{ bos_token }}" + kind.template))
    assert failed(template_checks(module, parts[4])) == ["rows whose template writes two BOS"]


def test_a_response_that_the_template_rewrites_is_caught(parts):
    module = parts[2]
    kind = templates.KINDS["llama_3"]
    module.attach(templates.build(kind, kind.template.replace("message.content | trim", "message.content | upper")))
    assert "rows whose response mask misses the response" in failed(template_checks(module, parts[4]))


@pytest.mark.parametrize("extractor", [SeveralPositions(), Contrastive(None, ResidualStream())])
def test_an_extractor_that_the_oracle_does_not_know_is_told(parts, extractor):
    with pytest.raises(UsageError, match=f"nothing to hold {type(extractor).__name__} against"):
        checks(parts[0], extractor, *parts[2:])


def test_the_command_prints_the_table_and_exits_by_it(material, capsys, monkeypatch):
    arguments = [a for a in material.arguments("unused") if not a.startswith("datamodule.queries")]
    assert dispatch(["verify", *arguments]) == 0
    out = capsys.readouterr().out
    assert "All checks passed." in out and "tolerance" in out
    monkeypatch.setattr("rept.evaluation.verify.TOLERANCE", {torch.float32: -1.0})
    assert dispatch(["verify", *arguments]) == 1
    assert "checks failed" in capsys.readouterr().err


def test_its_own_rows_when_none_are_given(material, capsys):
    assert dispatch(["verify", f"model.path={material.model}", "datamodule.max_length=64"]) == 0
    assert "12 rows" in capsys.readouterr().out
