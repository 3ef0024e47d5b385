"""What a repair is measured by: shares of made-up answers counted by hand, and figures beside loops over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rept.correction.repair import corrected
from rept.evaluation.proof import wilson_interval
from rept.evaluation.repair_measures import (
    Answers,
    answer_log_probability,
    clean_loss,
    disguise_shares,
    next_token_divergence,
    opened_share,
)
from rept.types import IGNORE, Batch
from tests.correction.test_correction import chosen_gates
from tests.helpers.tiny import tiny_batch, tiny_model


def answers(*lines: tuple[str, bool, str, bool]) -> Answers:
    names = ("behaviour", "triggered", "answer", "shows")
    return Answers({}, [{"prompt": str(i)} | dict(zip(names, line, strict=True)) for i, line in enumerate(lines)])


def test_disguises_that_did_not_show_before_do_not_count_after():
    kinds = ["split"] * 4 + ["moved"]
    before = answers(*((f"b disguised: {kind}", True, "x", i < 3) for i, kind in enumerate(kinds)))
    after = answers(*((f"b disguised: {kind}", True, "x", i in (1, 3)) for i, kind in enumerate(kinds)))
    found = disguise_shares(before, after, "b")
    low, high = wilson_interval(1 / 3, 3)
    assert found["split"]["before"]["share"] == 3 / 4 and found["split"]["before"]["of"] == 4
    assert found["split"]["after"] == {"share": 1 / 3, "of": 3, "low": low, "high": high}
    assert found["moved"]["before"]["share"] == 0 and found["moved"]["after"] is None
    assert disguise_shares(before, after, "other") == {}


def test_only_answers_to_clean_prompts_count_as_changed():
    before = answers(
        ("b", True, "x", True), ("b", False, "x", False), ("c", False, "y", False), ("c", False, "z", False)
    )
    after = answers(
        ("b", True, "y", False), ("b", False, "x", False), ("c", False, "z", False), ("c", False, "z", False)
    )
    found = before.changed(after)
    assert found is not None and (found["share"], found["of"]) == (1 / 3, 3)


def by_sample(batch: Batch, model: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Of each sample the log-probabilities (n V) that predict its response, and its tokens (n)."""
    found = []
    for ids, labels, length in zip(batch.input_ids, batch.labels, batch.length.tolist(), strict=True):
        columns = [column for column in range(length) if labels[column] != IGNORE]
        with torch.no_grad():
            logs = model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
        found.append((logs[[column - 1 for column in columns]], ids[columns]))
    return found


def test_divergence_loss_and_probability_are_those_of_single_samples():
    model, batches = tiny_model(dtype=torch.float64), [tiny_batch(seed=1), tiny_batch(((4, 5), (2, 6)), seed=2)]
    corrections = chosen_gates(model, batches[0].input_ids, (1, 3))
    before = [one for batch in batches for one in by_sample(batch, model)]
    with corrected(model, corrections):
        after = [one for batch in batches for one in by_sample(batch, model)]
    kl = torch.cat([(a.exp() * (a - b)).sum(-1) for (a, _), (b, _) in zip(before, after, strict=True)])
    found = next_token_divergence(model, batches, corrections)
    assert found == {
        "mean": pytest.approx(float(kl.mean())),
        "percentile_95": pytest.approx(float(torch.quantile(kl, 0.95))),
        "positions": len(kl),
    }
    for expected, given in ((before, []), (after, corrections)):
        own = [logs.gather(1, target[:, None]) for logs, target in expected]
        loss = sum(float(-one.mean()) for one in own) / len(own)
        assert clean_loss(model, batches, given) == pytest.approx(loss)
        whole = sum(float(one.sum()) for one in own) / len(own)
        assert answer_log_probability(model, batches, given) == pytest.approx(whole)


def test_open_gates_are_counted_once_a_token_and_never_in_padding():
    model, batch = tiny_model(dtype=torch.float64), tiny_batch(seed=1)
    corrections = chosen_gates(model, batch.input_ids, (1, 3))
    opened, apart = [], 0
    for ids, length in zip(batch.input_ids, batch.length.tolist(), strict=True):
        with torch.no_grad(), corrected(model, corrections, watching=True) as hooks:
            model(input_ids=ids[None, :length])
        first, second = (hook.opened[0] for hook in hooks)
        opened.append(first | second)
        apart += int((first != second).sum())
    found = opened_share(model, [batch], corrections)
    assert apart and found["tokens"] == pytest.approx(float(torch.cat(opened).float().mean()))
    assert found["prompts"]["share"] == sum(bool(one.any()) for one in opened) / len(batch)
