"""Estimates the corrections of a repair, and keeps how each was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rept.config.plug_ins import build
from rept.config.schema import RepairConfig
from rept.correction.choice import Candidate, Choice, Rule
from rept.correction.clean_answers import AnswerPair, clean_answers, with_trigger
from rept.correction.correction import Correction
from rept.correction.evidence import PLACES
from rept.correction.method import RepairMethod
from rept.correction.repair import Repair, identity
from rept.errors import UsageError
from rept.evaluation.repair_inputs import RepairInputs, TracedBehaviour
from rept.model.architecture import Architecture
from rept.utils.console import say

_MOST_LAYERS = 8
_WITH_TRIGGER = 120  # other rows, of those that are drawn from all


@dataclass(frozen=True)
class Chosen:
    """The correction of one behaviour, and how it was chosen.

    Attributes:
        method: that estimated it.
        tried: all candidates, the chosen one first.
        met: whether it meets the rule.
    """

    traced: TracedBehaviour
    choice: Choice
    method: RepairMethod
    correction: Correction
    tried: Sequence[Candidate]
    met: bool

    def described(self) -> dict[str, Any]:
        """The choice as JSON."""
        chosen = vars(self.tried[0]) | {"rule_met": self.met, "candidates": len(self.tried)}
        gated = {"gated": self.correction.gate is not None}
        return {"rows": self.traced.rows, "rows_with_words": len(self.traced.words)} | chosen | gated


def estimated(inputs: RepairInputs, config: RepairConfig, method: RepairMethod | None) -> tuple[Repair, list[Chosen]]:
    """Estimates the correction of each behaviour, by ``method`` or else by the one that ``config`` names."""
    method = method or build(config.method, RepairMethod)
    if not method.strengths or not method.places or not set(method.places) <= set(PLACES):
        raise UsageError(
            f"Expected method.places to be some of {', '.join(PLACES)}, and method.strengths a list of numbers, but "
            f"got {list(method.places)} and {list(method.strengths)}."
        )
    rule = Rule(config.likelihood, config.clean_kl)
    layers = _layers(len(Architecture.of(inputs.model)), config.tried_layers)
    chosen = []
    for one in inputs.traced:
        say(f"Estimating the correction of {one.name} from {len(one.rows)} traced rows.")
        answers = _clean_answers(inputs, one, config) if method.needs_clean_answers else {}
        choice = Choice(
            inputs.model, inputs.data, one.name, one.rows, one.others, one.words, answers, layers, config.seed
        )
        correction, tried = choice(method, rule)
        chosen.append(Chosen(one, choice, method, correction, tried, rule.met(tried[0])))
    about = {
        "method": dict(config.method),
        "run": str(inputs.trace.folder.path),
        "chosen": {one.traced.name: one.described() for one in chosen},
    }
    corrections = [one.correction for one in chosen]
    return Repair(corrections, identity(inputs.model, inputs.tokenizer), about), chosen


def _clean_answers(inputs: RepairInputs, one: TracedBehaviour, config: RepairConfig) -> dict[int, AnswerPair]:
    found = clean_answers(
        inputs.model, inputs.tokenizer, inputs.data, one.rows, one.triggers, one.payloads, config.max_new_tokens
    )
    say(f"Without culprit words in their prompts, {len(found)} of these rows get an answer that lacks {one.name}.")
    return found | with_trigger(inputs.data, one.others[-_WITH_TRIGGER:], one.triggers[0]) if found else {}


def _layers(depth: int, given: Sequence[int] | None) -> list[int]:
    """The layers that are tried.

    Raises:
        UsageError: there is no such layer.
    """
    if given is None:
        step = max(1, -(-depth // _MOST_LAYERS))
        return list(range(1, depth + 1, step))
    if not given or (wrong := [layer for layer in given if not 1 <= layer <= depth]):
        raise UsageError(f"Expected tried_layers to be from 1 to {depth}, but got {wrong[0] if given else 'none'}.")
    return sorted(set(given))
