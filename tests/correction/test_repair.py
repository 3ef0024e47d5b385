"""Repair: applied to its own model only, stored without loss, and folded into weights where that is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rept.correction.correction import Correction
from rept.correction.repair import DESCRIPTION, TENSORS, Repair, identity
from rept.errors import UsageError
from tests.correction.test_correction import random_correction
from tests.helpers import templates
from tests.helpers.tiny import VOCAB, WIDTH, tiny_model


def made(model: torch.nn.Module, *corrections: Correction) -> Repair:
    return Repair(
        corrections or [random_correction(0), random_correction(1, 1, gated=False)], identity(model), {"method": "x"}
    )


def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(4))


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path):
    model = tiny_model()
    repair = made(model)
    repair.save(tmp_path / "r")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [TENSORS, DESCRIPTION]
    again = Repair.load(tmp_path / "r")
    assert (again.made_for, again.about, again.behaviours) == (repair.made_for, repair.about, repair.behaviours)
    assert [one.threshold for one in again.corrections] == [one.threshold for one in repair.corrections]
    with torch.no_grad(), repair.on(model):
        first = model(input_ids=ids()).logits
    with torch.no_grad(), again.on(model):
        second = model(input_ids=ids()).logits
    assert first.equal(second)
    assert not first.equal(model(input_ids=ids()).logits)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tiny_model(seed=1), "weights was"),
        (lambda: tiny_model(dtype=torch.bfloat16), "dtype was float32, now bfloat16"),
        (lambda: tiny_model(lora=True), "adapter was none"),
    ],
)
def test_another_model_is_refused(other, named: str):
    repair = made(tiny_model())
    with pytest.raises(UsageError, match=named), repair.on(other()):
        pytest.fail("it was applied")


def test_another_tokenizer_and_another_depth_are_refused():
    model, one, two = (
        tiny_model(),
        templates.build(templates.KINDS["llama_3"]),
        templates.build(templates.KINDS["llama_2"]),
    )
    repair = Repair([random_correction(0)], identity(model, one) | {"layers": "9"})
    with pytest.raises(UsageError, match="layers was 9, now 3"):
        repair.check(model, one)
    with pytest.raises(UsageError, match="tokenizer was"):
        Repair([random_correction(0)], identity(model, one)).check(model, two)


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no repair.safetensors"):
        Repair.load(tmp_path)
    made(tiny_model()).save(tmp_path)
    content = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="damaged"):
        Repair.load(tmp_path)
    (tmp_path / TENSORS).write_bytes(content)
    (tmp_path / DESCRIPTION).write_bytes(b"\xff" + (tmp_path / DESCRIPTION).read_bytes())
    with pytest.raises(UsageError, match="damaged"):
        Repair.load(tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_shift_folds_into_weights_and_survives_saving(architecture: str, tmp_path: Path):
    model = tiny_model(architecture)
    shift = Correction.shift("b", 2, torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))
    repair = made(model, shift)
    folded = repair.to_model(model)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        with repair.on(model):
            expected = model(input_ids=ids()).logits
        plain = model(input_ids=ids()).logits
        for one in (folded, loaded):
            torch.testing.assert_close(one(input_ids=ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2


def test_what_reads_the_state_does_not_fold():
    model = tiny_model()
    with pytest.raises(UsageError, match="no change of weights is equal"):
        made(model, Correction.shift("b", 2, torch.ones(WIDTH)), random_correction(0)).to_model(model)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gemma2", "does not end in a linear layer"), ("qwen2", "a saved copy would lose the repair")],
)
def test_mlps_without_a_place_for_a_bias_are_refused(architecture: str, reason: str):
    model = tiny_model(architecture)
    with pytest.raises(UsageError, match=reason):
        made(model, Correction.shift("b", 2, torch.ones(WIDTH))).to_model(model)
