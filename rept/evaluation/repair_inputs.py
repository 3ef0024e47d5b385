"""What a repair starts from: a run, its model and data, the rows that it traced for each behaviour, and prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rept.config.plug_ins import build
from rept.config.schema import RepairConfig
from rept.correction.words import culprit_words, distinctive_part
from rept.data.behaviours import CLEAN, Behaviour
from rept.data.datamodule import AttributionDataModule
from rept.data.query_groups import group_queries
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation.proof_inputs import tested_behaviours
from rept.evaluation.retraining import check_traced_data, check_traced_model, load_traced_model, model_path
from rept.results.marked_words import more_frequent
from rept.results.records import BehaviourHit
from rept.results.trace import Trace
from rept.run.rescore import stored_data
from rept.types import PreTrainedModel, PreTrainedTokenizerBase

_FEWEST_ROWS = 4  # of either kind: two to estimate from, two to judge by
_MOST_FALSE = 0.1  # among the rows that a run names for a behaviour
_UNNAMED = 30  # rows of a behaviour's ranking, where none are named
_UNSURE = 4  # times as many rows as are traced may be culprits
_RANK_OFFSET = 10  # a hit at rank r counts 1 / (10 + r)


@dataclass(frozen=True)
class TracedBehaviour:
    """What a run found for one behaviour.

    Attributes:
        name: as in the labels of the queries.
        rows: training rows, the best first.
        others: other training rows, for comparison.
        words: by row, columns of the tokens of its response that are culprit words.
        triggers, payloads: culprit phrases of prompts, the least common among other rows first, and of responses.
    """

    name: str
    rows: list[int]
    others: list[int]
    words: dict[int, list[int]]
    triggers: list[str]
    payloads: list[str]

    @property
    def used(self) -> set[int]:
        """The rows that the correction is estimated from or chosen by."""
        return {*self.rows, *self.others}


@dataclass(frozen=True)
class RepairInputs:
    """A run with its model, and what is known of each behaviour that is to be switched off.

    Attributes:
        unused: training rows that no correction is made from, for the report.
        tested: behaviours with the prompts that test for them.
        clean: prompts of no behaviour besides those of ``tested``.
    """

    trace: Trace
    data: AttributionDataModule
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    traced: Sequence[TracedBehaviour]
    unused: Sequence[int]
    tested: Sequence[Behaviour]
    clean: Sequence[Sample]


def repair_inputs(
    trace: Trace,
    config: RepairConfig,
    behaviours: Collection[str] | None = None,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
) -> RepairInputs:
    """Returns what a repair starts from.

    Args:
        behaviours: names of those to switch off; None: all of the run.
        loaded: model and tokenizer, instead of the run's own from its path.

    Raises:
        UsageError: a number that is too small, no such behaviour, too few rows, no prompts, or data or a model that are
            missing or not those of the run.
    """
    for key, value, least in (
        ("rows", config.rows, _FEWEST_ROWS),
        ("others", config.others, _FEWEST_ROWS),
        ("clean", config.clean, 0),
        ("controls", config.controls, 0),
        ("max_new_tokens", config.max_new_tokens, 1),
    ):
        if value < least:
            raise UsageError(f"Expected {key} to be at least {least}, but got {value}.")
    data = stored_data(trace.folder, trace.config)
    labels = {query: trace.queries[query]["label"] for query in trace.answered}
    groups = group_queries(labels, trace.config.behaviours).behaviours
    chosen = list(groups if behaviours is None else dict.fromkeys(behaviours))
    if unknown := [name for name in chosen if name not in groups]:
        known = ", ".join(groups) or "none"
        raise UsageError(f"No query of {trace.folder.path} shows {unknown[0]!r}; its behaviours are: {known}.")
    if not chosen:
        raise UsageError(f"{trace.folder.path} has no query of a behaviour that could be switched off.")
    check_traced_data(trace, data)
    if loaded:
        check_traced_model(trace, loaded[0], "The given model")
    model, tokenizer = loaded or _run_model(trace, data)
    data.attach(tokenizer)
    traced = [_traced(trace, data, name, groups[name], config) for name in chosen]
    unused = _unused(trace, data, traced, config)
    return RepairInputs(trace, data, model, tokenizer, traced, unused, *_tested(trace, data, config, traced, unused))


def _run_model(trace: Trace, data: AttributionDataModule) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run traced, on the first accelerator if there is one.

    Raises:
        UsageError: it is not on disk, or has changed.
    """
    path = model_path(trace, data, "use rept.repair(trace, model, tokenizer)")
    model, tokenizer = load_traced_model(trace, path, trace.config)
    settings = trace.config.model
    placed = settings.device_map is not None or settings.load_in_4bit or settings.load_in_8bit
    if torch.accelerator.is_available() and not placed:
        nn.Module.to(model, torch.accelerator.current_accelerator())  # Transformers' own `to` has no usable type
    return model, tokenizer


def _traced(
    trace: Trace, data: AttributionDataModule, name: str, queries: Sequence[int], config: RepairConfig
) -> TracedBehaviour:
    """The rows that a run names for a behaviour, or the first of its ranking, and rows to compare them with.

    Named are, in a calibrated run, the flagged ones, and otherwise those of which an expected share of `_MOST_FALSE` is
    false. Half of the other rows are the next in the ranking whose responses have no culprit word: they are like the
    traced rows and do not show the behaviour. The rest are drawn from all but the named ones and the first of the
    ranking, four times as many as are traced. A run from before there were rankings of behaviours has that of its
    single queries' hits instead.
    """
    hits = trace.behaviour(name) if name in trace.behaviours else []
    ranking = list(dict.fromkeys([*(hit.row for hit in hits), *_found_by(trace, queries)]))
    named = _named(hits)
    rows = (ranking[:_UNNAMED] if named is None else named)[: config.rows]
    if len(rows) < _FEWEST_ROWS:
        raise UsageError(
            f"Expected at least {_FEWEST_ROWS} traced rows of {name}, but {trace.folder.path} has {len(rows)}: trace "
            "more queries of it, or with another scorer."
        )
    drawn = _drawn(data, {*ranking[: _UNSURE * len(rows)], *(named or ())}, config)
    marked = [one for label in {trace.queries[q]["label"] for q in queries} for one in trace.marked_words(label)]
    responses = [one.words for one in marked if one.part == "response"]
    parts = sorted({distinctive_part(data, phrase, rows, drawn) for phrase in responses})
    # The words were marked in the hits of single queries, which need not be the behaviour's rows.
    having = {part: [len(culprit_words(data, some, [part])) for some in (rows, drawn)] for part in parts}
    phrases = [part for part, (own, other) in having.items() if more_frequent(own, len(rows), other, len(drawn))]
    words = culprit_words(data, rows, phrases)
    if any(2 * len(words.keys() & set(half)) < len(half) for half in (rows[0::2], rows[1::2])):
        words = {}  # not what most rows have in common; one half estimates, the other judges
    rest = [row for row in ranking if row not in {*rows, *(named or ())}] if words else []
    alike = culprit_words(data, rest, phrases)
    unlike = [row for row in rest if row not in alike][: config.others // 2]
    others = [*unlike, *(row for row in drawn if row not in set(unlike))][: config.others]
    if len(others) < _FEWEST_ROWS:
        raise UsageError(
            f"Expected at least {_FEWEST_ROWS} other training rows to compare those of {name} with, but got "
            f"{len(others)}: set rows= lower, or trace more training rows."
        )
    prompts = sorted(
        (one for one in marked if one.part == "prompt"), key=lambda one: (one.others / one.of_others, -len(one.words))
    )
    return TracedBehaviour(name, rows, others, words, [one.words for one in prompts], phrases)


def _named(hits: Sequence[BehaviourHit]) -> list[int] | None:
    """The rows that a calibrated run flags, or those of which few are expected to be false; None where too few are."""
    if any(hit.flagged is not None for hit in hits):
        return [hit.row for hit in hits if hit.flagged]
    named = [hit.row for hit in hits if hit.false_share is not None and hit.false_share <= _MOST_FALSE]
    return named if len(named) >= _FEWEST_ROWS else None


def _found_by(trace: Trace, queries: Sequence[int]) -> list[int]:
    """The rows that single queries find, by the sum of 1 / (10 + rank)."""
    found: dict[int, float] = {}
    for hit in (hit for query in queries for hit in trace.hits(query) if not hit.same_as_query):
        found[hit.row] = found.get(hit.row, 0.0) + 1 / (_RANK_OFFSET + hit.rank)
    return sorted(found, key=lambda row: -found[row])


def _drawn(data: AttributionDataModule, away: Collection[int], config: RepairConfig) -> list[int]:
    """Other rows, drawn; without ``away``, which may be culprits too."""
    order = [row for row in _shuffled(data, config.seed) if row not in away][: 2 * config.others]
    return [row for row in order if data.status("train", row).attributed][: config.others]


def _unused(
    trace: Trace, data: AttributionDataModule, traced: Sequence[TracedBehaviour], config: RepairConfig
) -> list[int]:
    """Rows that no correction is made from, and that the run's queries find least."""
    hits = Counter(hit.row for query in trace.answered for hit in trace.hits(query))
    used = {row for one in traced for row in one.used}
    order = [row for row in _shuffled(data, config.seed) if row not in used]
    least = sorted(order, key=lambda row: hits[row])
    return [row for row in least[: 2 * config.others] if data.status("train", row).attributed][: config.others]


def _shuffled(data: AttributionDataModule, seed: int) -> list[int]:
    order = list(range(len(data.source("train"))))
    random.Random(f"others {seed}").shuffle(order)
    return order


def _tested(
    trace: Trace,
    data: AttributionDataModule,
    config: RepairConfig,
    traced: Sequence[TracedBehaviour],
    unused: Sequence[int],
) -> tuple[Sequence[Behaviour], list[Sample]]:
    """The behaviours with their prompts, and clean prompts besides theirs."""
    given, groups = data, trace.config.behaviours
    if config.prompts is not None:
        given = build(trace.config.datamodule | {"queries": config.prompts}, AttributionDataModule)
        groups = None  # numbers queries of the run
    found = tested_behaviours(trace, given, given, groups)
    if missing := [one.name for one in traced if one.name not in {tested.label for tested in found}]:
        raise UsageError(
            f"There are no prompts to test {missing[0]} by: name a file with prompts and expected responses of that "
            "label by prompts=."
        )
    if not any(isinstance(data.encoder.prompt(sample), list) for one in found for sample in one.triggered):
        raise UsageError("None of the prompts can be asked: each is empty or too long for datamodule.max_length.")
    asked = map(given.source("query").__getitem__, range(len(given.source("query"))))
    clean = [one for one in asked if isinstance(one, Sample) and one.label == CLEAN]
    if not clean and not any(one.clean for one in found):
        samples = [data.sample("train", row) for row in unused[: config.clean]]
        clean = [one for one in samples if isinstance(one, Sample)]
    return found, clean
