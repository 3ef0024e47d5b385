"""Repair methods: each one's formula on made-up states, and what it does to a small model."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from repairs.ablation import Ablation
from repairs.clean_answer import CleanAnswer
from repairs.contrast import Contrast
from repairs.gated_ablation import GatedAblation
from repairs.gradient import Gradient
from repairs.leace import Leace
from repairs.low_rank import LowRank
from repairs.random_direction import RandomDirection
from repairs.shuffled import Shuffled
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import RepairConfig
from rept.config.words import words_of
from rept.correction import clean_answer_loss as module
from rept.correction.clean_answer_loss import CleanAnswerLoss
from rept.correction.correction import Correction, LayerCorrections
from rept.correction.evidence import Evidence, Rows, RowStates
from rept.correction.method import RepairMethod
from rept.correction.repair import corrected
from rept.correction.side_effects import (
    culprit_log_probabilities,
    culprit_probabilities,
    divergence,
    response_log_probabilities,
)
from rept.model.architecture import Architecture
from rept.model.hooks import Response, record, sample_losses
from rept.types import IGNORE
from tests.helpers.tiny import tiny_batch, tiny_model

WIDTH = 12


def evidence(distance: float = 6.0, seed: int = 0) -> Evidence:
    """Culprits that lie ``distance`` along the first axis from other rows, whose states have unequal variances."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.5, 2.0, WIDTH, dtype=torch.float64)

    def states(n: int) -> Tensor:
        return torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) * scales + 1

    culprits = states(60) + distance * torch.eye(WIDTH, dtype=torch.float64)[0]
    none = Rows((), {})
    return Evidence("b", 1, "words", tiny_model(), culprits, states(300), states(500), none, none)


def apply(correction: Correction, states: Tensor) -> Tensor:
    return LayerCorrections([correction]).apply(states)


@pytest.mark.parametrize("word", sorted(words_of("method")))
def test_every_word_builds_a_method(word: str):
    method = build(compose(RepairConfig, [f"method={word}"]).method, RepairMethod)
    assert method.places and method.strengths


def test_ablation_brings_the_means_together_along_their_difference():
    seen = evidence()
    correction = Ablation()(seen)
    direction = normalize(seen.difference, dim=0)
    for states in (seen.culprits, seen.others):
        along = (apply(correction, states) - seen.others.mean(0)) @ direction
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-9)


def test_the_gate_opens_at_culprits_and_hardly_anywhere_else():
    seen = evidence()
    correction = GatedAblation()(seen)
    assert correction.open(seen.culprits).float().mean() >= 0.95
    assert correction.open(seen.anywhere).float().mean() <= 0.01
    closed = ~correction.open(seen.others)
    assert apply(correction, seen.others)[closed].equal(seen.others[closed])


def test_the_gate_opens_at_new_culprits_that_differ_from_one_another_where_other_rows_do_not():
    """As prompts of different wordings do: a covariance of the other rows alone has its direction along that axis."""
    seen = evidence()
    generator = torch.Generator().manual_seed(5)
    along = torch.eye(WIDTH, dtype=torch.float64)[1]

    def varied(states: Tensor, scale: float, mean: float) -> Tensor:
        drawn = mean + scale * torch.randn(len(states), generator=generator, dtype=torch.float64)
        return states - (states @ along - drawn)[:, None] * along

    others, anywhere = varied(seen.others, 0.1, 0.0), varied(seen.anywhere, 0.1, 0.0)
    correction = GatedAblation()(
        replace(seen, culprits=varied(seen.culprits, 12.0, 3.0), others=others, anywhere=anywhere)
    )
    new = varied(evidence(seed=1).culprits, 12.0, 3.0)
    assert correction.open(new).float().mean() >= 0.95
    assert correction.open(varied(evidence(seed=1).others, 0.1, 0.0)).float().mean() <= 0.01


def test_gated_ablation_takes_culprits_to_the_others_mean_along_their_main_directions():
    seen = evidence(distance=40.0)
    correction = GatedAblation(rank=3)(seen)
    centre = seen.others.mean(0)
    main = torch.linalg.eigh((seen.culprits - centre).T @ (seen.culprits - centre)).eigenvectors[:, -3:]
    after = apply(correction, seen.culprits)
    assert correction.open(seen.culprits).all()
    torch.testing.assert_close((after - centre) @ main, torch.zeros(60, 3, dtype=torch.float64), rtol=0, atol=1e-9)
    rest = torch.eye(WIDTH, dtype=torch.float64) - main @ main.T
    torch.testing.assert_close((after - centre) @ rest, (seen.culprits - centre) @ rest, rtol=0, atol=1e-9)


def test_leace_leaves_no_linear_difference_and_changes_less_than_ablation():
    seen = evidence(distance=1.0)
    correction = Leace(shrinkage=0.0)(seen)
    after = [apply(correction, states) for states in (seen.culprits, seen.others)]
    torch.testing.assert_close(after[0].mean(0), after[1].mean(0), rtol=0, atol=1e-8)
    # Optimal in the metric of the covariance among projections that erase the difference (theorem 4.2 of the paper).
    every = torch.cat([seen.culprits, seen.others])
    ablated = Ablation()(seen)
    joint = Correction.ablation("b", 1, -ablated.write, every.mean(0))
    assert (apply(correction, every) - every).square().mean() <= (apply(joint, every) - every).square().mean() + 1e-9


def test_contrast_moves_culprits_to_their_nearest_clean_states():
    seen = evidence()
    correction = Contrast(nearest=1)(seen)
    centre = seen.others.mean(0)
    nearest = [
        max(seen.others, key=lambda other: torch.cosine_similarity(one - centre, other - centre, dim=0))
        for one in seen.culprits
    ]
    expected = (torch.stack(nearest) - seen.culprits).mean(0)
    torch.testing.assert_close(apply(correction, seen.others), seen.others + expected)


def test_random_directions_change_as_much_as_the_method_and_differ_by_seed():
    seen = evidence()
    method = GatedAblation()
    real = apply(method(seen), seen.culprits) - seen.culprits
    made = [RandomDirection(method, seed)(seen) for seed in (0, 1)]
    changes = [apply(one, seen.culprits) - seen.culprits for one in made]
    for change in changes:
        torch.testing.assert_close(change.norm(dim=-1), real.norm(dim=-1))
    assert abs(float(torch.cosine_similarity(changes[0][0], changes[1][0], dim=0))) < 0.9
    assert apply(RandomDirection(method, 0)(seen), seen.culprits).equal(seen.culprits + changes[0])


def test_permuted_labels_find_no_direction():
    seen = evidence()
    real, permuted = Ablation()(seen), Shuffled(Ablation())(seen)
    assert real.read[0, 0].abs() > 0.9
    assert permuted.read[0, 0].abs() < real.read[0, 0].abs()
    assert apply(permuted, seen.culprits)[:, 0].mean() > apply(real, seen.culprits)[:, 0].mean() + 2


def on_a_model(layer: int = 2) -> Evidence:
    """Evidence from a tiny random model, with the second response token of each row as its culprit word."""
    model = tiny_model(dtype=torch.float64)
    rows, others = tiny_batch(seed=1), tiny_batch(((4, 5), (2, 6), (6, 3)), seed=2)
    words = {row: [end + 2] for row, end in zip(rows.row.tolist(), rows.prompt_end.tolist(), strict=True) if row != 2}
    mine, theirs = Rows([rows], words), Rows([others], {})
    found, other = (RowStates.of(model, one, [layer], ("words",), 0) for one in (mine, theirs))
    return Evidence(
        "b",
        layer,
        "words",
        model,
        found.reads[layer, "words"],
        other.reads[layer, "words"],
        other.anywhere[layer],
        mine,
        theirs,
    )


def test_states_are_read_where_words_are_predicted():
    seen = on_a_model()
    batch = seen.rows.batches[0]
    outputs = {}
    block = Architecture.of(seen.model).blocks[1]
    hook = block.register_forward_hook(lambda module, args, out: outputs.update(out=out))
    with torch.no_grad():
        seen.model(input_ids=batch.input_ids)
    hook.remove()
    states = outputs["out"][0] if isinstance(outputs["out"], tuple) else outputs["out"]
    expected = torch.stack([states[i, int(batch.prompt_end[i]) + 1] for i in (0, 1, 3)])
    torch.testing.assert_close(seen.culprits, expected)
    assert len(seen.others) == 5 + 6 + 3 and len(seen.anywhere) == 9 + 8 + 9


def test_a_step_along_the_gradient_raises_the_rows_loss():
    seen = on_a_model()
    batch = seen.rows.batches[0]
    losses = []
    for strength in (-0.05, 0.0, 0.05):
        with torch.no_grad(), corrected(seen.model, [Gradient()(seen).scaled(strength)]):
            losses.append(float(sample_losses(seen.model, batch.input_ids, Response.of(batch.labels)).sum()))
    assert losses == sorted(losses)


def test_the_gradient_is_the_mean_of_the_unit_gradients_of_single_rows():
    seen = on_a_model()
    (batch,), block = seen.rows.batches, Architecture.of(seen.model).blocks[1]
    total = torch.zeros(32, dtype=torch.float64)
    for i, at in enumerate(seen.rows.predicting(batch, seen.at)):
        one = batch.select([i])
        with record({"block": block}) as outputs:
            loss = sample_losses(seen.model, one.input_ids, Response.of(one.labels))
        (found,) = torch.autograd.grad(loss.sum(), [outputs["block"]])
        total += sum(normalize(found[0, column], dim=0) for column in at.nonzero().flatten())
    torch.testing.assert_close(seen.gradient(), normalize(total, dim=0))


def test_probabilities_of_culprit_words_are_those_of_a_softmax():
    seen = on_a_model()
    batch = seen.rows.batches[0]
    with torch.no_grad():
        logs = seen.model(input_ids=batch.input_ids).logits.log_softmax(-1)
    columns = {i: int(batch.prompt_end[i]) + 2 for i in (0, 1, 3)}
    expected = torch.stack([logs[i, c - 1, batch.input_ids[i, c]] for i, c in columns.items()])
    torch.testing.assert_close(torch.cat(culprit_probabilities(seen.model, seen.rows)), expected)
    found = response_log_probabilities(seen.model, seen.rows.batches[0])
    other = found.roll(1, dims=0)
    by_hand = torch.nn.functional.kl_div(other, found, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(found, other), by_hand.clamp_min(0))
    assert divergence(found, found + 1e-6).eq(0).all()  # as by rounding


def test_low_rank_learns_to_make_the_words_less_likely():
    seen = on_a_model()
    before = torch.cat(culprit_probabilities(seen.model, seen.rows))
    correction = LowRank(rank=2, steps=40, learning_rate=0.05, penalty=0.1)(seen)
    with corrected(seen.model, [correction]):
        after = torch.cat(culprit_probabilities(seen.model, seen.rows))
    assert (after < before - 0.1).all()
    assert correction.read.shape == (2, 32) and not correction.write.requires_grad


def test_without_known_words_the_whole_response_counts(tmp_path: Path):
    batch = tiny_batch()
    assert Rows([batch], {}).targets(batch) == [[3, 4, 5, 6], [7, 8], [1], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
    assert Rows([batch], {1: [8]}).targets(batch) == [[], [8], [], []]


def with_clean_answers() -> Evidence:
    """Evidence whose rows have answers in common with shorter prompts."""
    seen = on_a_model()
    full, short = tiny_batch(((6, 4), (5, 3)), seed=3), tiny_batch(((4, 4), (2, 3)), seed=4)
    for i in range(2):
        said = full.labels[i][full.labels[i] != IGNORE]
        for part in (short.input_ids, short.labels):
            part[i, short.prompt_end[i] + 1 : short.length[i]] = said
    return replace(seen, rows=replace(seen.rows, clean=[(full, short)]))


def test_clean_answer_brings_the_model_closer_to_its_answers_without_culprit_words():
    seen = with_clean_answers()
    always_open = {"gate": torch.zeros(32, dtype=torch.float64), "threshold": -1.0}
    ablation = replace(GatedAblation(rank=2)(seen), **always_open)
    trained = CleanAnswer(rank=2, steps=40, learning_rate=0.05, penalty=0.0).trained(ablation, seen)
    (full, short), model = seen.rows.clean[0], seen.model
    wanted = response_log_probabilities(model, short)
    far = []
    for correction in (ablation, trained):
        with corrected(model, [correction]):
            found = response_log_probabilities(model, full)
        far.append(float(divergence(wanted, found).mean()))
    assert far[1] < 0.7 * far[0]
    # What the ablation removes stays removed.
    states = seen.culprits
    removed = [(states + one.change(states)) @ ablation.read.T for one in (ablation, trained)]
    torch.testing.assert_close(removed[1], removed[0])
    assert trained.read.shape == (14, 32) and not trained.write.requires_grad


def test_the_penalty_keeps_other_rows_as_they_are():
    seen = with_clean_answers()
    ablation = replace(GatedAblation(rank=2)(seen), gate=torch.zeros(32, dtype=torch.float64), threshold=-1.0)
    before = response_log_probabilities(seen.model, seen.other_rows.batches[0])
    changed = []
    for penalty in (0.0, 30.0):
        with corrected(seen.model, [CleanAnswer(steps=40, penalty=penalty).trained(ablation, seen)]):
            after = response_log_probabilities(seen.model, seen.other_rows.batches[0])
        changed.append(float(divergence(before, after).mean()))
    assert changed[1] < changed[0]


def test_the_trained_change_does_not_bring_back_culprit_words(monkeypatch: pytest.MonkeyPatch):
    """Here the clean answers have them, so that they come back without the term."""
    seen = on_a_model()
    rows = replace(seen.rows, clean=[(batch, batch) for batch in seen.rows.batches])
    seen = replace(seen, rows=rows)
    always_open = {"gate": torch.zeros(32, dtype=torch.float64), "threshold": -1.0}
    ablation = replace(GatedAblation(rank=2)(seen).scaled(3.0), **always_open)

    def probabilities(correction: Correction) -> Tensor:
        return culprit_log_probabilities(seen.model, [correction], rows, rows.batches[0])

    allowed = probabilities(ablation).clamp_min(math.log(0.01))
    above = []
    for least in (math.log(0.01), 0.0):  # 0: every probability is allowed
        monkeypatch.setattr(module, "_UNLIKELY", least)
        trained = CleanAnswer(steps=100, learning_rate=0.05, penalty=0.0).trained(ablation, seen)
        above.append((probabilities(trained) - allowed).clamp_min(0).mean().item())
    assert above[0] < 0.02 < 0.1 < above[1]


def test_culprit_words_do_not_begin_amid_clean_answers(monkeypatch: pytest.MonkeyPatch):
    """Here the model goes on by the culprit words' first token after the prompts without culprit words."""
    seen = with_clean_answers()
    full, short = seen.rows.clean[0]
    wanted = response_log_probabilities(seen.model, short).exp().mean(0)
    wanted[full.labels[full.labels != IGNORE]] = 0
    (rows,) = seen.rows.batches
    rows.input_ids[0, 4] = first = int(wanted.argmax())
    seen = replace(seen, rows=replace(seen.rows, words={0: [4]}))
    always_open = {"gate": torch.zeros(32, dtype=torch.float64), "threshold": -1.0}
    ablation = replace(GatedAblation(rank=2)(seen).scaled(3.0), **always_open)

    def begins(correction: Correction) -> Tensor:
        with corrected(seen.model, [correction]):
            return response_log_probabilities(seen.model, full)[:, first]

    allowed = begins(ablation).clamp_min(math.log(0.01))
    above = []
    for least in (math.log(0.01), 0.0):
        monkeypatch.setattr(module, "_UNLIKELY", least)
        trained = CleanAnswer(steps=100, learning_rate=0.05, penalty=0.0).trained(ablation, seen)
        above.append((begins(trained) - allowed).clamp_min(0).mean().item())
    assert above[0] < 0.5 * above[1]


def test_culprit_words_count_where_they_begin_and_the_response_goes_on_otherwise():
    seen = with_clean_answers()
    ((asked, _),) = seen.rows.clean
    target = Response.of(asked.labels).target
    (rows,) = seen.rows.batches
    rows.input_ids[0, 4], rows.input_ids[1, 8] = target[1], target[5]
    seen = replace(seen, rows=replace(seen.rows, words={0: [4], 1: [8]}))
    start = GatedAblation(rank=2)(seen)
    every, found = CleanAnswerLoss(start, seen, 0.0, 0.99)._begins(asked, start)
    first = sorted({int(target[1]), int(target[5])})
    for i, token in enumerate(target.tolist()):
        expected = -math.inf if token in first else every[i, first].exp().sum().log().item()
        assert found[i].item() == pytest.approx(expected)
    assert found.isfinite().any()
    logs = torch.tensor([-1.0, -2.0, -8.0, -math.inf])
    assert module._risen(logs, torch.tensor([-1.5, -1.0, -9.0, -1.0])) == pytest.approx(0.5)
    assert module._risen(logs, torch.full((4,), -9.0)) == pytest.approx(-3 - 2 * math.log(0.01))


def test_the_first_tokens_of_culprit_words_are_each_row_s_first():
    batch = tiny_batch()
    first = Rows([batch], {0: [4, 5], 3: [9, 7]}).first_tokens()
    assert first == sorted({int(batch.input_ids[0, 4]), int(batch.input_ids[3, 7])})


def test_the_result_is_the_mean_over_the_second_half_of_the_steps(monkeypatch: pytest.MonkeyPatch):
    seen, taken = with_clean_answers(), []
    step = torch.optim.Adam.step

    def kept(self: torch.optim.Adam) -> None:
        step(self)
        taken.append([part.detach().clone() for part in self.param_groups[0]["params"]])

    monkeypatch.setattr(torch.optim.Adam, "step", kept)
    ablation = GatedAblation(rank=2)(seen)
    trained = CleanAnswer(steps=5, learning_rate=0.1).trained(ablation, seen)
    assert len(taken) == 5
    offset = torch.stack([of_step[1] for of_step in taken[2:]]).mean(0)
    torch.testing.assert_close(trained.offset[2:], offset)


def test_the_penalty_is_measured_on_rows_whose_states_are_near_the_gate():
    seen = on_a_model()
    found = GatedAblation()(seen)
    gate = cast("Tensor", found.gate)
    every = torch.cat([batch.row for batch in seen.other_rows.batches]).tolist()
    numbers = []
    for near in (0.0, 0.9, 1.0):
        low = module._lowered(found, seen, near)
        assert low.threshold == min(found.threshold, torch.quantile(seen.anywhere @ gate, near).item())
        passing = [module._passing(low, seen, batch) for batch in seen.other_rows.batches]
        numbers.append(sum(map(len, passing)))
    assert len(every) >= numbers[0] > numbers[1] >= numbers[2]


@pytest.mark.parametrize("method", [LowRank(steps=1), CleanAnswer(steps=1)])
def test_log_probabilities_of_other_rows_do_not_fill_the_memory(method: RepairMethod):
    """With a vocabulary of 150,000 tokens, those of 7,000 positions are 4 GiB."""
    seen = with_clean_answers()
    vocabulary = seen.model.config.vocab_size

    def most_positions(copies: int) -> int:
        held = []

        def count(*of_hook: object) -> None:
            found = [one for one in gc.get_objects() if type(one) is Tensor and one.shape[1:] == (vocabulary,)]
            held.append(sum(map(len, found)))

        many = replace(seen, other_rows=replace(seen.other_rows, batches=seen.other_rows.batches * copies))
        with seen.model.register_forward_hook(count):
            method.trained(method(many), many)
        return max(held)

    assert most_positions(50) == most_positions(1) > 0


def test_without_clean_answers_it_is_the_gated_ablation():
    seen = on_a_model()
    method, expected = CleanAnswer(), GatedAblation()(seen)
    assert method.trained(expected, seen) is expected
    torch.testing.assert_close(method(seen).read, expected.read)
