"""python -m rept verify: passes a sound model, and catches planted faults of model, extractor and template."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from datamodules.instructions import InstructionData
from extractors.gradients.virtual_linear import VirtualLinear
from extractors.sites.contrastive import Contrastive
from extractors.sites.reader import SITES, SingleSite
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.__main__ import dispatch
from rept.errors import UsageError
from rept.evaluation.verify import TOLERANCE, checks, template_checks
from rept.model.architecture import Architecture
from rept.model.freezing import freeze
from rept.model.hooks import Response, sample_losses
from rept.model.loading import load_model, load_tokenizer
from rept.signatures.extractor import POSITIONS, Position
from rept.types import FIELDS, Status
from tests.helpers import templates
from tests.helpers.tiny import ARCHITECTURES

ORACLE, SINGLE = "batched path against the one-sample oracle", "batch against single samples"
PADDING, WIDER = "more padding on the right", "float32 against float64"


def parts_of(material):
    module = InstructionData(str(material.train), str(material.queries), max_length=64, tokens_per_batch=256)
    module.attach(load_tokenizer(str(material.model)))
    return load_model(str(material.model)), ResidualStream(), module, [1, 2, 3], [0, 1, 2, 3, 4, 6]


@pytest.fixture
def parts(material):
    return parts_of(material)


@pytest.fixture(scope="module")
def trained(material):
    """The parts with a model that was trained until it predicts each of the rows with a loss below 0.002."""
    torch.set_num_threads(1)
    model, read, module, layers, rows = parts_of(material)
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=1e-2, weight_decay=0)
    (batch,) = module.batches("train", rows)
    losses = torch.ones(1)
    for _ in range(500):
        if losses.max() < 0.002:
            return freeze(model), read, module, layers, rows
        losses = sample_losses(model, batch.input_ids, Response.of(batch.labels))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    pytest.fail("the model does not learn its rows")


@pytest.fixture
def certain(trained):
    """`trained`, with a model of which each test can change its own copy."""
    return deepcopy(trained[0]), *trained[1:]


def failed(found) -> list[str]:
    return [check.name for check in found if not check.passed]


def test_a_sound_model_passes(parts):
    found = checks(*parts)
    assert len(found) == 8 and failed(found) == []
    assert {WIDER, SINGLE} <= {check.name for check in found}


@pytest.mark.parametrize("position", [*POSITIONS, POSITIONS])
def test_a_sound_model_passes_at_all_sites_and_positions(parts, position: Position):
    assert failed(checks(parts[0], SeveralSites(position=position), *parts[2:])) == []


@pytest.fixture
def gate():
    class Gate(SingleSite):
        """The site that the README defines."""

        name = "gate_projection"

        def site(self, model: PreTrainedModel, layer: int) -> nn.Module:
            return Architecture.of(model).blocks[layer - 1].mlp.gate_proj

    yield Gate
    del SITES["gate_projection"]


def test_a_custom_site_is_verified(parts, gate):
    assert failed(checks(parts[0], gate(), *parts[2:])) == []
    assert failed(checks(parts[0], Scaled(gate(), "gradient", 1.001), *parts[2:])) == [ORACLE]


class Scaled:
    """Reads what another extractor reads, with one field scaled: a wrong path."""

    def __init__(self, extractor, field: str, factor: float) -> None:
        self.extractor, self.field, self.factor = extractor, field, factor
        self.fields, self.readings, self.sites = extractor.fields, extractor.readings, extractor.sites

    def __call__(self, model, batch, layers):
        blocks = self.extractor(model, batch, layers)
        return {key: block * (self.factor if key.field == self.field else 1) for key, block in blocks.items()}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_extractor_is_caught(parts, certain, field, position):
    for one, factor in ((parts, 1.001), (certain, 1.01)):
        assert failed(checks(one[0], Scaled(ResidualStream(position=position), field, factor), *one[2:])) == [ORACLE]


def test_float32_s_error_of_a_gradient_that_cancels_is_not_a_fault_of_the_model(certain):
    """Where the model is certain, the gradient is a small difference of large terms, and so are its last digits."""
    model, read, module, layers, rows = certain
    assert failed(checks(*certain)) == []
    (batch,) = module.batches("train", rows)
    exact = read(deepcopy(model).double(), batch, layers)
    error = {
        key: ((block - exact[key]).norm(dim=1) / exact[key].norm(dim=1)).max()
        for key, block in read(model, batch, layers).items()
    }
    assert max(error.values()) > 1e-4


def test_a_fault_of_float32_alone_is_caught(certain):
    def coarse(module, args, output):
        return output.bfloat16().float() if output.dtype == torch.float32 else output

    certain[0].model.layers[0].register_forward_hook(coarse)
    assert failed(checks(*certain)) == [WIDER]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_wrong_extractor_is_caught_in_every_dtype(parts, dtype):
    model = parts[0].to(dtype)
    assert failed(checks(model, *parts[1:])) == []
    wrong = Scaled(ResidualStream(), "gradient", 1 + 2 * TOLERANCE[dtype])
    assert failed(checks(model, wrong, *parts[2:])) == [ORACLE]


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 3e-4), (torch.bfloat16, 0.6), (torch.float16, 0.15)])
def test_a_fault_of_one_dtype_is_caught(parts, dtype, share):
    def fault(module, args, output):
        return output + share * output.flip(-1) if output.dtype == dtype else output

    model = parts[0].to(dtype)
    model.model.layers[0].register_forward_hook(fault)
    (found,) = failed(checks(model, *parts[1:]))
    assert found.startswith(str(dtype).removeprefix("torch."))


def test_a_model_in_float64_passes_without_a_wider_dtype(parts):
    found = checks(parts[0].double(), *parts[1:])
    assert len(found) == 7 and failed(found) == []


def test_a_mixture_of_experts_passes(material, parts):
    shape = ARCHITECTURES["mixtral"][1] | {"vocab_size": len(load_tokenizer(str(material.model)))}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **shape))
    assert failed(checks(freeze(model), *parts[1:])) == []


def test_parts_that_the_user_names_are_those_of_the_wider_copy(parts):
    Architecture.of(parts[0], attention="self_attn.o_proj", mlp="mlp.up_proj")
    assert failed(checks(parts[0], SeveralSites(), *parts[2:])) == []


def test_without_rows_nothing_is_verified(parts):
    with pytest.raises(UsageError, match="with nothing to compare, nothing is verified"):
        checks(*parts[:4], [])


def test_batches_of_one_are_compared_with_the_oracle_alone(parts):
    parts[2].tokens_per_batch = 1
    found = [check.name for check in checks(*parts)]
    assert SINGLE not in found and len(found) == 7


def test_a_model_whose_batch_differs_from_single_samples_is_caught(parts):
    def neighbours(module, args, output):
        return output + 0.01 * output.mean(0, keepdim=True) * (len(output) > 1)

    parts[0].model.layers[0].register_forward_hook(neighbours)
    assert SINGLE in failed(checks(*parts))


def test_a_model_that_sees_its_padding_is_caught(parts):
    def look_ahead(module, args, output):
        return output + 0.01 * output.mean(1, keepdim=True)

    parts[0].model.layers[0].register_forward_hook(look_ahead)
    assert PADDING in failed(checks(*parts))


def test_a_model_with_nan_fails(parts):
    with torch.no_grad():
        parts[0].model.norm.weight[0] = float("nan")
    assert ORACLE in failed(checks(*parts))


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
    for rows in (parts[4], [29]):
        assert "rows whose response mask misses the response" in failed(template_checks(module, rows))


def test_a_response_that_was_cut_is_not_missed(parts):
    assert parts[2].status("train", 29) == Status.CUT and failed(template_checks(parts[2], [29])) == []


@pytest.mark.parametrize("extractor", [VirtualLinear(), Contrastive(None, ResidualStream())])
def test_an_extractor_that_the_oracle_cannot_compute_is_reported(parts, extractor):
    with pytest.raises(UsageError, match=f"{type(extractor).__name__} computes them otherwise"):
        checks(parts[0], extractor, *parts[2:])


def test_the_command_prints_the_table_and_exits_by_it(material, capsys, monkeypatch):
    arguments = [a for a in material.arguments("unused") if not a.startswith("datamodule.queries")]
    assert dispatch(["verify", *arguments]) == 0
    out = capsys.readouterr().out
    assert "All checks passed." in out and "tolerance" in out
    monkeypatch.setattr("rept.evaluation.verify.TOLERANCE", {torch.float32: -1.0})
    assert dispatch(["verify", *arguments]) == 1
    assert "3 of 8 checks failed" in capsys.readouterr().err


def test_built_in_rows_are_verified_if_none_are_given_and_float64_can_be_set(material, capsys):
    assert dispatch(["verify", f"model.path={material.model}", "datamodule.max_length=64", "model.dtype=float64"]) == 0
    assert "12 rows" in capsys.readouterr().out
