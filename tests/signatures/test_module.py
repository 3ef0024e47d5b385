"""The predict step: statuses, rows set aside, batches that do not fit, gradients that underflow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.signatures.module import AttributionModule
from rept.types import Key, Status
from tests.helpers.tiny import tiny_batch, tiny_model

H, G = Key("residual_stream", 2, "representation"), Key("residual_stream", 2, "gradient")


def module_of(extractor) -> AttributionModule:
    return AttributionModule(tiny_model(), extractor, [2])


def test_the_step_gives_the_extractor_s_signature_and_each_row_s_status():
    batch = tiny_batch()
    cut = torch.zeros(len(batch), dtype=torch.bool)
    cut[1] = True
    batch = replace(batch, cut=cut, set_aside=((90, Status.EMPTY_PROMPT), (91, Status.NOT_A_STRING)))
    made = module_of(ResidualStream()).predict_step(batch)
    expected = ResidualStream()(tiny_model(), batch, [2])
    assert made.row.tolist() == [*batch.row.tolist(), 90, 91]
    statuses = [Status.CUT if i == 1 else Status.ATTRIBUTED for i in range(len(batch))]
    assert made.status.tolist() == [*statuses, Status.EMPTY_PROMPT, Status.NOT_A_STRING]
    for key, block in expected.items():
        assert torch.equal(made.signature[key][: len(batch)], block)
        assert not made.signature[key][len(batch) :].any()


def test_a_batch_of_set_aside_rows_alone_needs_no_model():
    empty = replace(tiny_batch().select([]), set_aside=((3, Status.EMPTY_RESPONSE),))
    made = module_of(None).predict_step(empty)
    assert (made.row.tolist(), made.status.tolist(), made.signature) == ([3], [Status.EMPTY_RESPONSE], {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2e38])
def test_a_row_that_is_not_finite_is_set_aside_and_its_neighbours_stay(value):
    def extractor(model, batch, layers):
        blocks = ResidualStream()(model, batch, layers)
        blocks[G][2, :3] = value  # 2e38 is finite, the norm of three such numbers is not, in float32
        return blocks

    batch = tiny_batch()
    made, clean = module_of(extractor).predict_step(batch), module_of(ResidualStream()).predict_step(batch)
    assert made.status.tolist() == [Status.NON_FINITE if i == 2 else Status.ATTRIBUTED for i in range(len(batch))]
    for key in (H, G):
        assert not made.signature[key][2].any()
        keep = [i for i in range(len(batch)) if i != 2]
        assert torch.equal(made.signature[key][keep], clean.signature[key][keep])


def test_a_batch_that_does_not_fit_is_halved_and_keeps_its_order():
    sizes = []

    def extractor(model, batch, layers):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.cuda.OutOfMemoryError("too large")
        return ResidualStream()(model, batch, layers)

    module = module_of(extractor)
    made = module.predict_step(tiny_batch())
    whole = module_of(ResidualStream()).predict_step(tiny_batch())
    assert made.row.tolist() == whole.row.tolist()
    for key in (H, G):
        torch.testing.assert_close(made.signature[key], whole.signature[key], rtol=1e-5, atol=1e-7)
    assert max(sizes) == len(tiny_batch()) and module.halvings == len(tiny_batch()) - 1


def test_after_a_batch_that_does_not_fit_larger_ones_are_halved_before_they_are_tried(capsys):
    sizes = []

    def extractor(model, batch, layers):
        sizes.append(batch.input_ids.numel())
        if sizes[-1] == 4 * 14:
            raise torch.cuda.OutOfMemoryError("too large")
        return ResidualStream()(model, batch, layers)

    module, batch = module_of(extractor), tiny_batch()  # 7, 9, 2 and 14 tokens
    module.predict_step(batch)
    assert sizes == [4 * 14, 2 * 9, 2 * 14] and module.halvings == 1
    assert "56 tokens do not fit on the device: from here on at most half as many" in capsys.readouterr().out
    sizes.clear()
    module.predict_step(batch.select([0, 1, 3]))  # 42 tokens, more than half of 56
    module.predict_step(batch.select([2, 3]))  # 28 tokens
    assert sizes == [7, 2 * 14, 2 * 14] and module.halvings == 2


def test_a_single_row_that_does_not_fit_is_reported_with_what_to_do():
    def extractor(model, batch, layers):
        raise torch.cuda.OutOfMemoryError("too large")

    with pytest.raises(UsageError, match="Row 3 of the train data, 14 tokens long, does not fit"):
        module_of(extractor).predict_step(tiny_batch().select([3]))


def test_a_batch_of_a_split_model_that_does_not_fit_is_reported(monkeypatch):
    def extractor(model, batch, layers):
        raise torch.cuda.OutOfMemoryError("too large")

    monkeypatch.setattr("rept.signatures.module.is_split", lambda model: True)
    with pytest.raises(UsageError, match="lower datamodule.tokens_per_batch"):
        module_of(extractor).predict_step(tiny_batch())


def test_a_batch_that_keeps_ranks_in_step_is_run_and_not_kept():
    ran = []

    def extractor(model, batch, layers):
        ran.append(len(batch))
        return ResidualStream()(model, batch, layers)

    assert module_of(extractor).predict_step(replace(tiny_batch(), filler=True)) is None
    riding = replace(tiny_batch(), filler=True, set_aside=((90, Status.EMPTY_PROMPT),))
    made = module_of(extractor).predict_step(riding)
    assert (made.row.tolist(), made.status.tolist(), made.signature) == ([90], [Status.EMPTY_PROMPT], {})
    assert ran == [len(tiny_batch())] * 2


@pytest.mark.parametrize("field", ["gradient", "gradient_last_prompt"])
def test_gradients_of_exactly_zero_are_counted(field):
    def extractor(model, batch, layers):
        blocks = ResidualStream()(model, batch, layers)
        blocks[G][0] = 0
        blocks[H][3] = 0  # which is no gradient
        return {H: blocks[H], Key("residual_stream", 2, field): blocks[G]}

    module = module_of(extractor)
    module.predict_step(tiny_batch())
    assert module.underflowed == 1
