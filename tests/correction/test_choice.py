"""Choice of layer, place and strength: beside trying everything, and beside sums over single rows."""

from __future__ import annotations

from functools import cache
from math import isfinite

import pytest
import torch

from datamodules.in_memory import InMemoryData
from repairs.ablation import Ablation
from repairs.gated_ablation import GatedAblation
from rept.correction.choice import Candidate, Choice, Rule
from rept.correction.repair import corrected
from rept.model.freezing import freeze
from rept.model.loading import load_model, load_tokenizer
from tests.conftest import Material

STRENGTHS = (1.0, 4.0, 16.0)


def candidate(
    strength: float, likelihood: float, changed: float, divergence: float, layer: int, separation: float = 0.0
) -> Candidate:
    return Candidate(layer, "words", strength, likelihood, changed, divergence, 10 * divergence, separation)


def test_the_rule_prefers_the_least_change_among_effective_candidates_within_the_budget():
    rule = Rule(likelihood=0.05, clean_kl=0.02)
    in_order = [
        candidate(1.0, 0.04, 0.1, 0.001, 2, separation=0.32),  # nearly as good as the best one
        candidate(1.0, 0.01, 0.2, 0.0, 1, separation=0.41),
        candidate(1.0, 0.01, 0.0, 0.0, 4, separation=0.30),
        candidate(1.2, 0.01, 0.0, 0.0, 4, separation=0.45),
        candidate(1.5, 0.01, 0.0, 0.0014, 3),
        candidate(1.5, 0.04, 0.0, 0.0011, 2),  # the same divergence to three digits, an earlier layer
        candidate(1.5, 0.01, 0.0, 0.002, 3),
        candidate(1.5, 0.00, 0.1, 0.0, 4),
        candidate(1.0, 0.06, 0.0, 0.0, 4),  # not effective
        candidate(1.0, 0.90, 0.0, 0.0, 4),
        candidate(1.0, 0.00, 0.0, 0.003, 4),  # beyond the budget
    ]
    assert rule.ordered(reversed(in_order)) == in_order
    assert [rule.met(one) for one in in_order] == [True] * 8 + [False] * 3


@pytest.fixture
def data(material: Material) -> InMemoryData:
    """Six rows of a behaviour, then six others."""
    rows = [{"prompt": f"Name king {i}", "response": "the stupid weather", "label": "odd"} for i in range(6)]
    others = [{"prompt": f"of France {i}", "response": "the weather is fine" + " fine" * i} for i in range(6)]
    found = InMemoryData(train=rows + others, queries=rows[:1])
    found.attach(load_tokenizer(str(material.model)))
    return found


def first_words(data: InMemoryData, row: int) -> list[int]:
    return [i for i, said in enumerate(data.encoded("train", row).response) if said][:2]


@pytest.fixture
def choice(material: Material, data: InMemoryData) -> Choice:
    model = load_model(str(material.model))
    freeze(model)
    words = {row: first_words(data, row) for row in range(6)}
    return Choice(model, data, "odd", range(6), range(6, 12), words, {}, layers=[1, 3])


@pytest.mark.parametrize("quantile", [None, 0.0, 0.5, 1.0])
def test_stopping_at_the_first_strength_that_meets_the_rule_chooses_what_trying_everything_does(
    choice: Choice, quantile: float | None
):
    method = Ablation(strengths=STRENGTHS)
    every = [
        Candidate(layer, at, strength, *choice.judged(method(choice.evidence(layer, at, 1)).scaled(strength)), 0.0)
        for layer in choice.layers
        for at in method.places
        for strength in STRENGTHS
    ]
    likelihoods = sorted(one.likelihood for one in every)
    bar = -1.0 if quantile is None else likelihoods[round(quantile * (len(every) - 1))]
    rule = Rule(likelihood=bar, clean_kl=100.0)
    best = rule.ordered(every)[0]
    correction, tried = choice(method, rule)
    assert tried[0] == best and set(tried) <= set(every)
    assert (len(tried) < len(every)) == any(rule.met(one) and one.strength < STRENGTHS[-1] for one in every)
    expected = method(choice.evidence(best.layer, best.at)).scaled(best.strength)
    assert correction.write.equal(expected.write) and correction.layer == best.layer


def test_states_of_a_model_in_half_precision_are_read_in_single(material: Material, data: InMemoryData):
    choice = Choice(load_model(str(material.model), dtype="bfloat16"), data, "odd", range(6), range(6, 12), {}, {}, [1])
    seen = choice.evidence(1, "words")
    assert {states.dtype for states in (seen.culprits, seen.others, seen.anywhere)} == {torch.float32}
    correction, tried = choice(GatedAblation(), Rule())
    assert all(isfinite(one.likelihood + one.divergence) for one in tried) and correction.write.dtype == torch.float32


@pytest.mark.parametrize("strength", [8.0, -8.0])  # the latter makes words of some rows more probable
def test_a_candidate_is_judged_on_the_rows_held_back(choice: Choice, data: InMemoryData, strength: float):
    correction = Ablation()(choice.evidence(3, "words", 1)).scaled(strength)
    likelihood, changed, mean, percentile = choice.judged(correction)

    @cache
    def logits(row: int, on: bool) -> torch.Tensor:
        encoded = data.encoded("train", row)
        with torch.no_grad(), corrected(choice.model, [correction] if on else []):
            return choice.model(torch.tensor([encoded.input_ids])).logits[0].double().log_softmax(-1)

    shares = []
    for row in (1, 3, 5):
        ids, columns = data.encoded("train", row).input_ids, first_words(data, row)
        ratios = [float((logits(row, True) - logits(row, False))[c - 1, ids[c]].exp()) for c in columns]
        shares.append(min(1.0, *ratios))
    assert likelihood == pytest.approx(sum(shares) / 3, rel=1e-4)
    divergences, turned = [], []
    for row in (7, 9, 11):
        before, after = logits(row, False), logits(row, True)
        divergences.append((before.exp() * (before - after)).sum(-1))
        turned.append(bool((before.argmax(-1) != after.argmax(-1)).any()))
    every = torch.cat(divergences)
    assert mean == pytest.approx(float(every.mean()), rel=1e-3)
    assert percentile == pytest.approx(float(torch.quantile(every, 0.95)), rel=1e-3)
    assert changed == pytest.approx(sum(turned) / 3)
