"""What a repair does, measured on prompts: rates with intervals, disguises, clean answers, divergence and speed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rept.correction.correction import Correction
from rept.correction.repair import corrected
from rept.correction.side_effects import corrected_divergence, open_at, response_log_probabilities
from rept.data.behaviours import Behaviour
from rept.data.disguises import DISGUISES
from rept.data.encoder import Encoder, sorted_batches
from rept.data.samples import Sample
from rept.evaluation.proof import wilson_interval
from rept.model.hooks import Response, sample_losses
from rept.model.placement import input_device
from rept.training.behaviour_rates import Rate, ask_behaviours
from rept.types import Batch, PreTrainedModel, PreTrainedTokenizerBase

_OTHER_CLEAN = "clean prompts"  # as the label of a behaviour that is never shown
_DISGUISED = " disguised: "
_TIMED_TOKENS, _TIMES = 24, 9


@dataclass
class Prompts:
    """The prompts that every model is asked, and the texts that divergences are measured on.

    Attributes:
        tested: behaviours, with their triggered and clean prompts.
        clean: further clean prompts.
        disguised: by behaviour and kind, disguised triggered prompts.
        fresh: clean training rows that the repair was not made from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    tested: Sequence[Behaviour]
    clean: Sequence[Sample]
    fresh: Sequence[Batch]
    max_new_tokens: int
    disguised: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def disguise(self, paraphrases: Mapping[str, Sequence[Sample]], seed: int) -> None:
        """Adds disguises of every behaviour's triggered prompts, and the ``paraphrases`` that the data have of them."""
        for one in self.tested:
            rng = random.Random(f"disguises {seed} {one.label}")
            kinds = {kind: [make(sample, rng) for sample in one.triggered] for kind, make in DISGUISES.items()}
            kinds["paraphrased"] = list(paraphrases.get(one.label, ()))
            found = {kind: [sample for sample in made if sample] for kind, made in kinds.items()}
            self.disguised[one.label] = {kind: made for kind, made in found.items() if made}

    def answers(self, corrections: Sequence[Correction], *, disguised: bool = True, clean: bool = True) -> Answers:
        """Asks prompts under corrections; with none, the model as it is."""
        asked = [*self.tested, Behaviour(_OTHER_CLEAN, (), self.clean, lambda sample, answer: False)]
        if disguised:
            shows = {one.label: one.shows for one in self.tested}
            asked += [
                Behaviour(f"{label}{_DISGUISED}{kind}", samples, (), shows[label])
                for label, kinds in self.disguised.items()
                for kind, samples in kinds.items()
            ]
        if not clean:
            asked = [replace(one, clean=()) for one in asked]
        with corrected(self.model, corrections):
            rates, lines = ask_behaviours(self.model, self.tokenizer, self.encoder, asked, self.max_new_tokens)
        return Answers(rates, lines)

    def texts(self, answers: Answers, triggered: bool) -> list[Batch]:
        """Batches of the prompts of one kind with these answers, on which predictions are compared."""
        lines = [
            line for line in answers.lines if line["triggered"] == triggered and _DISGUISED not in line["behaviour"]
        ]
        by_prompt = {sample.prompt: sample for one in self.tested for sample in (*one.triggered, *one.clean)}
        by_prompt |= {sample.prompt: sample for sample in self.clean}
        unique = {line["prompt"]: line["answer"] for line in lines}
        samples = [replace(by_prompt[prompt], response=answer, spans=()) for prompt, answer in unique.items()]
        return [batch for batch in sorted_batches(self.encoder, enumerate(samples)) if len(batch)]


@dataclass(frozen=True)
class Answers:
    """What a model answered: rates by label, and one line for each prompt."""

    rates: Mapping[str, Rate]
    lines: Sequence[Mapping[str, Any]]

    def rate(self, label: str) -> dict[str, Any]:
        """The rate of a behaviour with intervals, as JSON."""
        rate = self.rates[label]
        shares = {"triggered": (rate.success, rate.triggered), "clean": (rate.false_alarms, rate.clean)}
        return {kind: _share(round((share or 0) * of), of) for kind, (share, of) in shares.items()}

    def disguises(self, label: str) -> dict[str, list[bool]]:
        """Whether each disguised prompt brought the behaviour out, by kind."""
        found: dict[str, list[bool]] = {}
        for line in self.lines:
            name, marked, kind = line["behaviour"].partition(_DISGUISED)
            if marked and name == label:
                found.setdefault(kind, []).append(line["shows"])
        return found

    def changed(self, other: Answers) -> dict[str, Any] | None:
        """The share of clean prompts that the other model answers otherwise."""
        pairs = zip(self.lines, other.lines, strict=True)
        changed = [one["answer"] != now["answer"] for one, now in pairs if not one["triggered"]]
        return _share(sum(changed), len(changed))


def disguise_shares(before: Answers, after: Answers, label: str) -> dict[str, Any]:
    """By kind, the share of disguised prompts that fire before, and of those the share that still fire after."""
    then, now = before.disguises(label), after.disguises(label)
    fired = {kind: [b for a, b in zip(then[kind], now[kind], strict=True) if a] for kind in then}
    return {
        kind: {"before": _share(sum(then[kind]), len(then[kind])), "after": _share(sum(fired[kind]), len(fired[kind]))}
        for kind in then
    }


def next_token_divergence(
    model: PreTrainedModel, batches: Sequence[Batch], corrections: Sequence[Correction]
) -> dict[str, float] | None:
    """KL(before || after) at all positions that predict an answer: mean, 95th percentile, positions."""
    if not batches:
        return None
    with torch.no_grad():
        every = torch.cat([corrected_divergence(model, corrections, batch, batch) for batch in batches])
    return {"mean": every.mean().item(), "percentile_95": torch.quantile(every, 0.95).item(), "positions": len(every)}


def answer_log_probability(
    model: PreTrainedModel, batches: Sequence[Batch], corrections: Sequence[Correction]
) -> float:
    """The log-probability of a whole answer in nats, mean over answers, of which there is one at least."""
    total = 0.0
    for batch in batches:
        with corrected(model, corrections):
            logs = response_log_probabilities(model, batch)
        total += logs.gather(1, Response.of(batch.labels).target[:, None]).sum().item()
    return total / sum(map(len, batches))


def clean_loss(model: PreTrainedModel, batches: Sequence[Batch], corrections: Sequence[Correction]) -> float:
    """The mean loss of the responses of rows, of which there is one at least, each row's own mean first."""
    losses = []
    with torch.no_grad(), corrected(model, corrections):
        for batch in (one.to(input_device(model)) for one in batches):
            losses.append(sample_losses(model, batch.input_ids, Response.of(batch.labels)).cpu())
    return torch.cat(losses).mean().item()


def opened_share(model: PreTrainedModel, batches: Sequence[Batch], corrections: Sequence[Correction]) -> dict[str, Any]:
    """On texts of clean prompts with their answers: the share of tokens, and of texts, at which a gate opens."""
    tokens = opened = texts = 0
    for batch in batches:
        found = open_at(model, corrections, batch)
        tokens, opened = tokens + int(batch.length.sum()), opened + int(found.sum())
        texts += int(found.any(1).sum())
    return {"tokens": opened / tokens if tokens else None, "prompts": _share(texts, sum(map(len, batches)))}


def milliseconds(model: PreTrainedModel, prompt: Sequence[int], corrections: Sequence[Correction]) -> dict[str, float]:
    """Milliseconds for each generated token, of the model as it is and corrected, in turns; the least of nine."""
    ids = torch.tensor([list(prompt)], device=input_device(model))
    clock = time.process_time if ids.device.type == "cpu" else time.perf_counter  # other programs may use the processor

    def seconds() -> float:
        start = clock()
        with torch.no_grad():
            model.generate(  # type: ignore[operator]  # of Transformers' GenerationMixin
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=_TIMED_TOKENS,
                max_new_tokens=_TIMED_TOKENS,
                pad_token_id=0,
            )
        return clock() - start

    before: list[float] = []
    after: list[float] = []
    for _ in range(_TIMES):
        for taken, context in ((before, nullcontext()), (after, corrected(model, corrections))):
            with context:
                taken.append(1000 * seconds() / _TIMED_TOKENS)
    return {"before": min(before), "after": min(after), "overhead": min(after) / min(before) - 1}


def _share(count: int, of: int) -> dict[str, Any] | None:
    """A share of prompts with its 95 % interval, as JSON; None of no prompts."""
    if not of:
        return None
    low, high = wilson_interval(count / of, of)
    return {"share": count / of, "of": of, "low": low, "high": high}
