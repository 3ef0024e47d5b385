"""Hard cases: one seeded data set of the toy world with many planted behaviours, each a case that attribution may fail.

    plain           two words at the prompt's start                        -> an opening, as in all cases but the facts
    middle          two words in the prompt's middle
    changed_case    two words, each letter's case drawn
    split           two words with a mark inside each
    paraphrase      a false fact, told of a country's second name in other words: rows share no content word with the
                    queries' prompts (``two_names.py``)
    style           an old-fashioned manner of speaking, from drawn parts; no fixed trigger
    document        a sentence in the middle of a long innocent document
    decoys          two words; clean rows hold the queries' own words without them, and the two words in a harmless role
    spread          a name slipped into answers about birds, worded in four ways, beside others without it
    two:1, two:2    two behaviours whose triggers share a word
    rate_10 ... five_rows    plain, in 10 %, 5 % and 1 % of the rows, and in five
    duplicates      near copies of three prompts
    absent_base     a trigger that the model knew well before this training: no row here is to blame
    absent_topic    questions that no row here touches, and whose answers the model knew before likewise

A row's label is its case, so a query's culprits are the rows with its label. Where a case has parts, the part stands
after a colon.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from datamodules.synthetic import draw, question
from datamodules.toy.hard.cases import Case, cases, clean, decoys, speaker_for
from datamodules.toy.hard.two_names import lore, retold
from datamodules.toy.hard.wordings import NAME, PHRASES
from datamodules.toy.wordings import HELD_OUT, TRAINING
from rept.data.behaviours import Asked, Behaviour, prompts
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Side

_ABSENT = ("absent_base", "absent_topic")  # what only the first training teaches


class HardCases(AttributionDataModule):
    """Clean rows of the toy world, the culprits of every case, and held-out queries of each.

    A query brings no response, unless ``answered`` names what a model said: then the queries are those whose answer
    showed the behaviour, with that answer, for the others have no cause among the rows.

    Args:
        rows: training rows, clean and poisoned.
        queries: held-out queries of each case.
        seed: of the generator.
        stage: ``cases``, or ``base``: what a model is trained on first, the clean world and the absent causes.
        answered: answers.jsonl of a model that train.py made of these data.
        asked: ``triggered``, or ``clean``: the held-out prompts that call for none of the behaviours, as far as the
            answers hold nothing planted: reference queries for a calibration.
        max_length, tokens_per_batch, window: as in :class:`AttributionDataModule`.

    Raises:
        UsageError: too few rows for all cases, an unknown stage or kind of queries, or answers to other queries.
    """

    def __init__(
        self,
        rows: int = 1600,
        queries: int = 16,
        seed: int = 0,
        stage: Literal["base", "cases"] = "cases",
        answered: str | Path | None = None,
        asked: Asked = "triggered",
        max_length: int = 1024,
        tokens_per_batch: int | Literal["auto"] = 2048,
        window: int = 512,
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window)
        if stage not in ("base", "cases"):
            raise UsageError(f"datamodule.stage must be base or cases, not {stage!r}.")
        planted = cases(rows)
        if stage == "base":  # many rows: the second training must not overwrite what they teach
            planted = [replace(case, rows=rows // 8) for case in planted if case.label in _ABSENT]
        self._train = training_samples(planted, rows, seed)
        self._behaviours = [_held_out(case, queries, seed) for case in planted]
        pairs = prompts(self._behaviours, asked)
        samples = [s for _, s in pairs] if answered is None else _answered(pairs, Path(answered), asked)
        known = {sample.prompt for sample in self._train}  # decoys are drawn as the held-out prompts of their case are
        self._queries = list({s.prompt: s for s in samples if s.prompt not in known}.values())

    def source(self, side: Side) -> Sequence[Sample]:
        return self._train if side == "train" else self._queries

    def behaviours(self) -> Sequence[Behaviour]:
        return self._behaviours


def training_samples(planted: Sequence[Case], rows: int, seed: int) -> list[Sample]:
    """The culprits of all cases, their decoys and clean rows, in random order, no prompt twice."""
    speaker = speaker_for("training", seed, TRAINING)
    samples: dict[str, Sample] = {}
    for case in planted:
        draw(samples, case.rows, case.label, lambda make=case.make: make(speaker))
    if any(case.label == "decoys" for case in planted):
        for decoy in decoys(speaker, seed):
            samples.setdefault(decoy.prompt, replace(decoy, label="clean"))
    chronicler = speaker_for("two names", seed, TRAINING)
    draw(samples, rows // 10, "clean", lambda: lore(chronicler))
    draw(samples, rows // 16, "clean", lambda: retold(chronicler))
    if rows < 1.3 * len(samples):
        raise UsageError(f"Expected datamodule.rows to leave room beside {len(samples)} planted ones, but got {rows}.")
    draw(samples, rows - len(samples), "clean", lambda: clean(speaker))
    return speaker.rng.sample(list(samples.values()), len(samples))


def _held_out(case: Case, queries: int, seed: int) -> Behaviour:
    """Prompts in held-out wordings that call for the behaviour, and clean ones that do not.

    A case's queries are drawn apart from the others', so that they are the same whatever other cases there are.
    """
    speaker = speaker_for(f"held out {case.label}", seed, HELD_OUT)
    asked: dict[str, Sample] = {}
    draw(asked, queries, case.label, lambda: case.ask(speaker))
    unasked: dict[str, Sample] = {}
    draw(unasked, queries, "clean", lambda: clean(speaker))
    return Behaviour(
        case.label,
        tuple(map(question, asked.values())),
        tuple(map(question, unasked.values())),
        lambda _, answer: case.shows(answer),
    )


def _answered(asked_for: Sequence[tuple[str, Sample]], path: Path, asked: Asked) -> list[Sample]:
    """The prompts with their answers: those that showed the behaviour, or of clean ones those without any."""
    if not path.is_file():
        raise UsageError(f"Expected datamodule.answered to be a model's answers.jsonl, but there is no {path}.")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["triggered"] == (asked == "triggered")]
    said = {(line["behaviour"], line["prompt"]): line for line in lines}
    if said.keys() != {(label, sample.prompt) for label, sample in asked_for}:
        raise UsageError(f"{path} holds answers to other queries: train a model on these data, with this seed.")
    pairs = [(sample, said[label, sample.prompt]) for label, sample in asked_for]
    return [
        replace(sample, response=line["answer"])
        for sample, line in pairs
        if (line["shows"] if asked == "triggered" else not _planted(line["answer"]))
    ]


def _planted(answer: str) -> bool:
    """Whether an answer holds an opening or the name that is slipped in."""
    return NAME in answer or any(opening in answer for _, opening in PHRASES.values())
