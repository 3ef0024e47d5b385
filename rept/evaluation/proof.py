"""Proof by retraining: how a model behaves without the culprits, and without as many random rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import nn

from rept.config.schema import TARGET
from rept.data.behaviours import how_counted
from rept.errors import UsageError
from rept.evaluation.proof_inputs import ProofInputs
from rept.evaluation.retraining import check_plan, load_traced_model
from rept.training.behaviour_rates import Rate, ask_behaviours, rates_as_json, read_rates
from rept.training.finetune import ANSWER_TOKENS, train_model
from rept.training.model_folder import ModelFolder
from rept.training.trainer import build_trainer
from rept.utils.console import say, show_table
from rept.utils.digests import text_digest
from rept.utils.files import lock_folder
from rept.utils.json_files import write_json
from rept.utils.ranks import own_rank
from rept.utils.text import format_count

MODELS = ("before", "without", "random")  # the run's model, and those of the two trainings
Rates = dict[str, dict[str, Rate]]  # by model, then by label

_NORMAL_95 = NormalDist().inv_cdf(0.975)


def prove(inputs: ProofInputs, out: Path, seed: int = 0) -> None:
    """Trains without the culprits and without as many random rows, asks all models the same prompts, and prints it.

    The same call again resumes, or shows the finished proof.

    Args:
        out: folder of both trained models, ``without`` and ``random``, and of proof.json.
        seed: of the random rows.

    Raises:
        UsageError: ``out`` holds another proof, the run's model or the recipe's base model is missing or has changed,
            or too few other rows are left to draw from.
    """
    with lock_folder(out):
        left_out = {"without": inputs.rows, "random": _random_rows(inputs, seed)}
        record = _record(inputs, out, left_out, seed)
        if own_rank() == 0 and "before" not in record:
            record["before"] = rates_as_json(_ask_run_model(inputs))
            write_json(out / "proof.json", record)
        for name, rows in left_out.items():
            say(f"Training without {'the' if name == 'without' else 'random'} {format_count(len(rows), 'row')}.")
            train_model(inputs.without(rows, out / name), inputs.behaviours)
        if own_rank() == 0:
            record |= {name: rates_as_json(read_rates(ModelFolder(out / name).behaviours)) for name in left_out}
            write_json(out / "proof.json", record)
            rates = {name: {label: Rate(**rate) for label, rate in record[name].items()} for name in MODELS}
            show_proof(rates, len(inputs.rows))
            if counted := how_counted(inputs.behaviours):
                say(counted)


def wilson_interval(share: float, of: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share among ``of`` prompts.

    Wilson, JASA 22 (1927): with z = 1.96, share p and n prompts,

        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(0.0, 40)]
        [0.0, 0.088]
    """
    z = _NORMAL_95
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    low, high = ((middle + sign * spread) / (1 + z * z / of) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def caused(rates: Rates, label: str) -> bool:
    """Whether a behaviour shows less without the culprits than without random rows; the intervals do not overlap."""
    without, random = (rates[name][label] for name in ("without", "random"))
    if without.success is None or random.success is None:
        return False
    return wilson_interval(without.success, without.triggered)[1] < wilson_interval(random.success, random.triggered)[0]


def show_proof(rates: Rates, rows: int) -> None:
    """Prints the rates of the three models with 95 % intervals, and which behaviours the rows caused."""
    counted = format_count(rows, "row")
    columns = ("behaviour", "prompts", "before", f"without the {counted}", f"without {counted} at random")
    lines: list[tuple[str, ...]] = []
    for label in rates["before"]:
        of_label = [rates[name][label] for name in MODELS]
        lines.append((label, "call for it", *(_cell(rate.success, rate.triggered) for rate in of_label)))
        if any(rate.clean for rate in of_label):
            lines.append(("", "do not", *(_cell(rate.false_alarms, rate.clean) for rate in of_label)))
    show_table("How often each behaviour shows, with 95 % intervals", columns, lines, numbers=slice(2, None))
    found = [label for label in rates["before"] if caused(rates, label)]
    other = [label for label in rates["before"] if label not in found]
    if found:
        say(
            f"Caused by these rows: {', '.join(found)}. Without them it shows less often than without random rows, and "
            "the intervals do not overlap."
        )
    if other:
        say(f"Not shown to be caused by these rows: {', '.join(other)}.")


def _cell(share: float | None, of: int) -> str:
    if share is None:
        return ""
    low, high = wilson_interval(share, of)
    return f"{share:.1%} of {of} ({100 * low:.0f} to {100 * high:.0f})"


def _random_rows(inputs: ProofInputs, seed: int) -> list[int]:
    """As many rows that the model was trained on as there are among the culprits, drawn from the others."""
    data = inputs.data
    inputs.attach_base()
    left_out = data.excluded | set(inputs.rows)
    if not (wanted := sum(data.status("train", row).attributed for row in inputs.rows)):
        raise UsageError("None of these rows can be trained on: each has an empty or too long prompt, or no response.")
    order = np.random.default_rng(seed).permutation(len(data.source("train"))).tolist()
    others = (row for row in order if row not in left_out and data.status("train", row).attributed)
    found = sorted(islice(others, wanted))
    if len(found) < wanted:
        raise UsageError(
            f"Expected {format_count(wanted, 'row')} besides the culprits to draw a control from, but got only "
            f"{len(found):,}: leave out fewer rows."
        )
    return found


def _record(inputs: ProofInputs, out: Path, left_out: Mapping[str, Sequence[int]], seed: int) -> dict[str, Any]:
    """The content of proof.json so far: what is proved, and the rates that are known."""
    asked = [(one.label, sample) for one in inputs.behaviours for sample in (*one.triggered, *one.clean)]
    parts = (part for label, sample in asked for part in (label, sample.prompt, sample.response or ""))
    plan = {name: inputs.fingerprint(name) for name in ("weights", "training data")}
    plan |= {"prompts": text_digest(*parts), "seed": seed, "rows": left_out}
    return check_plan(out / "proof.json", "proof", plan)


def _ask_run_model(inputs: ProofInputs) -> dict[str, Rate]:
    """The rates of the run's model; raises UsageError if it is missing or is another one by now."""
    config = inputs.trace.config
    # The trained models are asked in the template that they were trained with, which the run may have replaced.
    template = inputs.recipe.model.get("chat_template")
    config = replace(config, model=replace(config.model, chat_template=template))
    model, tokenizer = load_traced_model(inputs.trace, inputs.path, config)
    if config.model.device_map is None and not (config.model.load_in_4bit or config.model.load_in_8bit):
        settings = inputs.recipe.trainer
        node = {key: settings[key] for key in (TARGET, "accelerator", "devices") if key in settings}
        device = build_trainer(node, logger=False, enable_checkpointing=False).strategy.root_device
        nn.Module.to(model, device)  # Transformers' own `to` has no usable type
    inputs.data.attach(tokenizer)
    return ask_behaviours(model, tokenizer, inputs.data.encoder, inputs.behaviours, ANSWER_TOKENS)[0]
