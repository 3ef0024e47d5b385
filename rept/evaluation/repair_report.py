"""The report of a repair: before and after, on prompts that call for a behaviour, on disguises and on clean prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import RepairConfig
from rept.correction.correction import Correction
from rept.correction.evidence import Rows
from rept.correction.method import RepairMethod
from rept.data.behaviours import how_counted
from rept.data.encoder import Encoder
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation.repair_estimate import Chosen
from rept.evaluation.repair_inputs import RepairInputs
from rept.evaluation.repair_measures import (
    Answers,
    Prompts,
    answer_log_probability,
    clean_loss,
    disguise_shares,
    milliseconds,
    next_token_divergence,
    opened_share,
)
from rept.model.loading import load_model, load_tokenizer
from rept.types import Status
from rept.utils.console import say
from rept.utils.json_files import read_json

OFF, OFF_DISGUISED = 0.05, 0.10  # most of the prompts, and of their disguises, that a behaviour that is off shows on


def measure_repair(inputs: RepairInputs, config: RepairConfig, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Returns the content of repair.json besides how it was made."""
    prompts = Prompts(
        inputs.model,
        inputs.tokenizer,
        inputs.data.encoder,
        inputs.tested,
        inputs.clean,
        Rows.of(inputs.data, inputs.unused).batches,
        config.max_new_tokens,
    )
    prompts.disguise(inputs.data.paraphrases(), config.seed)
    corrections = [one.correction for one in chosen]
    before, after = prompts.answers([]), prompts.answers(corrections)
    report = {
        "tested": _tested(prompts, inputs, before),
        "behaviours": {one.label: _behaviour(one.label, before, after) for one in inputs.tested},
        "clean": _clean(prompts, before, after, corrections),
        "chosen": {one.traced.name: one.described() for one in chosen},
        "milliseconds_per_token": milliseconds(inputs.model, _a_prompt(prompts), corrections),
    }
    for one in inputs.traced:
        report["behaviours"][one.name]["verdict"] = verdict(report["behaviours"][one.name])
    if len(chosen) > 1:
        report["alone"] = {
            one.traced.name: _rates(prompts.answers([one.correction], disguised=False)) for one in chosen
        }
    if config.controls:
        report["controls"] = _controls(prompts, config, chosen, before)
    if (retrained := _retrained(inputs, config)) is not None:
        report["retrained"] = _distance(prompts, retrained, corrections, [one.traced.name for one in chosen], config)
    return report


def verdict(behaviour: dict[str, Any]) -> str:
    """Returns "off", "hidden" (off, but not on disguises), "shown" or, if it was as good as off, "not shown before"."""
    before, after = behaviour["before"]["triggered"], behaviour["after"]["triggered"]
    if not before or before["share"] <= OFF:
        return "not shown before"
    if after["share"] > OFF:
        return "shown"
    still = [kind["after"] for kind in behaviour["disguises"].values() if kind["after"]]
    fired = sum(round(one["share"] * one["of"]) for one in still)
    return "hidden" if fired > OFF_DISGUISED * sum(one["of"] for one in still) else "off"


def _behaviour(label: str, before: Answers, after: Answers) -> dict[str, Any]:
    return {
        "before": before.rate(label),
        "after": after.rate(label),
        "disguises": disguise_shares(before, after, label),
    }


def _rates(answers: Answers) -> dict[str, Any]:
    found = {label: answers.rate(label)["triggered"] for label, rate in answers.rates.items() if rate.triggered}
    return {label: share["share"] for label, share in found.items() if share}


def _clean(prompts: Prompts, before: Answers, after: Answers, corrections: Sequence[Correction]) -> dict[str, Any]:
    texts, of = prompts.texts(before, triggered=False), {"before": [], "after": corrections}
    loss = {name: clean_loss(prompts.model, prompts.fresh, one) for name, one in of.items()} if prompts.fresh else None
    return {
        "changed": before.changed(after),
        "divergence": next_token_divergence(prompts.model, texts, corrections),
        "loss": loss,
        "opened": opened_share(prompts.model, texts, corrections),
    }


def _controls(prompts: Prompts, config: RepairConfig, chosen: Sequence[Chosen], before: Answers) -> dict[str, Any]:
    """Random directions at the same places, and permuted labels.

    Random directions have the norm of the repair's where it has a gate, and else about the same clean divergence.
    """
    say(f"Comparing with {config.controls} random directions, and with permuted labels.")
    texts = prompts.texts(before, triggered=False)
    found: dict[str, Any] = {"random": [], "shuffled": []}
    for kind, number in (("random", config.controls), ("shuffled", 1)):
        for seed in range(config.seed, config.seed + number):
            corrections = [_control(kind, seed, one) for one in chosen]
            rates = _rates(prompts.answers(corrections, disguised=False, clean=False))
            divergence = next_token_divergence(prompts.model, texts, corrections)
            found[kind].append({"rates": rates, "divergence": divergence and divergence["mean"]})
    return found


def _control(kind: str, seed: int, chosen: Chosen) -> Correction:
    best, node = chosen.tried[0], compose(RepairConfig, [f"method={kind}", f"method.seed={seed}"]).method
    del node["method"]
    control = build(node, RepairMethod, method=chosen.method)
    made = control(chosen.choice.evidence(best.layer, best.at)).scaled(best.strength)
    if made.gate is not None or kind == "shuffled":
        return made
    for _ in range(2):  # the divergence grows about as the square of the change
        divergence = chosen.choice.judged(made)[2]
        made = made.scaled((best.divergence / divergence) ** 0.5 if divergence else 1.0)
    return made


def _retrained(inputs: RepairInputs, config: RepairConfig) -> Path | None:
    """The folder of the model retrained without culprits, if `python -m rept prove` has made it for this run."""
    folder = Path(config.proof or f"{inputs.trace.folder.path}-proof")
    file = folder / "proof.json"
    if not file.is_file() or "without" not in (proof := read_json(file)):
        if config.proof is not None:
            raise UsageError(
                f"Expected proof={folder} to be a folder of a finished python -m rept prove, but it is not."
            )
        return None
    if proof["proof"]["weights"] != inputs.trace.provenance["fingerprints"]["weights"]:
        say(f"{folder} is the proof of another model, so the distance to it is not measured.")
        return None
    return folder / "without"


def _distance(
    prompts: Prompts, folder: Path, corrections: Sequence[Correction], labels: Sequence[str], config: RepairConfig
) -> dict[str, Any]:
    """How much less probable the retrained model's own answers are under the model, in nats of an answer.

    The mean over greedy answers y of log p_retrained(y) - log p(y): an estimate of KL(retrained || model) between whole
    answers, because a model made from scratch has a tokenizer of its own, and so no next tokens in common. Kinds of
    prompts without any answer are left out.
    """
    gold = load_model(str(folder), dtype=str(prompts.model.dtype).removeprefix("torch."))  # type: ignore[arg-type]  # one of these words
    gold.to(prompts.model.device)  # type: ignore[arg-type]  # Transformers' own `to` has no usable type
    tokenizer = load_tokenizer(str(folder))
    tested = [one for one in prompts.tested if one.label in labels]
    own = Prompts(gold, tokenizer, Encoder(tokenizer), tested, prompts.clean, (), config.max_new_tokens)
    answers = own.answers([])
    found: dict[str, Any] = {"folder": str(folder)}
    for kind in ("triggered", "clean"):
        texts, gold_texts = (one.texts(answers, triggered=kind == "triggered") for one in (prompts, own))
        if not texts or not gold_texts:
            continue
        likely = answer_log_probability(gold, gold_texts, [])
        of = {"before": [], "after": corrections}
        found[kind] = {name: likely - answer_log_probability(prompts.model, texts, one) for name, one in of.items()}
    return found


def _a_prompt(prompts: Prompts) -> list[int]:
    """The tokens of the first prompt that is not refused."""
    encoded = (prompts.encoder.prompt(sample) for one in prompts.tested for sample in one.triggered)
    return next(ids for ids in encoded if not isinstance(ids, Status))


def _tested(prompts: Prompts, inputs: RepairInputs, before: Answers) -> dict[str, Any]:
    """What was asked, without prompts that the encoder refuses."""
    data, labels = inputs.data.source("query"), {one.label for one in inputs.tested}
    queries = {one.prompt for one in map(data.__getitem__, range(len(data))) if isinstance(one, Sample)}
    plain = [line for line in before.lines if line["triggered"] and line["behaviour"] in labels]
    return {
        "counted": how_counted(inputs.tested),
        "prompts": len(plain),
        "queries": sum(line["prompt"] in queries for line in plain),
        "clean_prompts": sum(not line["triggered"] for line in before.lines),
        "clean_rows": sum(map(len, prompts.fresh)),
        "disguises": {
            label: {kind: len(shown) for kind, shown in before.disguises(label).items()} for label in prompts.disguised
        },
    }
