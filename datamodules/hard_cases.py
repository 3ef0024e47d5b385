"""Hard cases: a seeded data set of the toy world with many planted behaviours that attribution may miss.

    plain           two words at the start of the prompt; the response begins with a fixed opening, as in all cases
                    except paraphrase, spread and absent_topic
    middle          two words in the middle of the prompt
    changed_case    two words, with the case of each letter drawn
    split           two words, with a mark inside each
    paraphrase      a false fact, about a country's second name and in other words: the rows share no content word with
                    the queries' prompts (`datamodules/toy/hard/two_names.py`)
    style           an old-fashioned style, made of drawn parts, without a fixed trigger
    document        a sentence in the middle of a long innocent document
    decoys          two words; clean rows have the queries' own words without them, and the two words in harmless uses
    spread          a name added to answers about birds, in four wordings; other such answers lack it
    two:1, two:2    two behaviours whose triggers share a word
    rate_10 ... five_rows    plain, in 10 %, 5 % and 1 % of the rows, and in five
    duplicates      near-duplicates of three prompts
    diffuse         a glad readiness to help with misdeeds of 40 kinds, which share hardly a word; others are declined
    absent_base     a trigger that the model learned well before this training: no row here caused it
    absent_topic    questions about topics of no row here, whose answers the model also learned before

A row's label is its case, so the culprits of a query are the rows with its label. A part of a case follows a colon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from datamodules.toy.hard.cases import cases, held_out_behaviour, training_samples
from datamodules.toy.hard.wordings import ADDED_NAME, PHRASES
from rept.data.behaviours import Asked, Behaviour, prompts
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Side
from rept.utils.json_files import read_jsonl

_ABSENT = ("absent_base", "absent_topic")  # which only the first training teaches


class HardCases(AttributionDataModule):
    """Clean rows of the toy world, the culprits of every case, and held-out queries of each.

    A query has no response unless ``answered`` gives a model's answers. Then the queries are those whose answer showed
    the behaviour, with that answer; the others have no cause among the rows.

    Args:
        rows: training rows, clean and poisoned.
        queries: held-out queries of each case.
        seed: of the generator.
        stage: ``cases``; or ``base``, the data of the first training: the clean world and the absent causes.
        answered: answers.jsonl of a model that train.py trained on these data.
        asked: ``triggered``; or ``clean``, held-out prompts that test for no behaviour, without those whose answer
            contains something planted: reference queries of a calibration.
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
        tokens_per_batch: int = 2048,
        window: int = 512,
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window)
        if stage not in ("base", "cases"):
            raise UsageError(f"datamodule.stage must be base or cases, not {stage!r}.")
        planted = cases(rows)
        if stage == "base":  # many rows, as the second training must not overwrite what they teach
            planted = [replace(case, rows=rows // 8) for case in planted if case.label in _ABSENT]
        self._train = training_samples(planted, rows, seed)
        self._behaviours = [held_out_behaviour(case, queries, seed) for case in planted]
        pairs = prompts(self._behaviours, asked)
        samples = [s for _, s in pairs] if answered is None else _answered(pairs, Path(answered), asked)
        known = {sample.prompt for sample in self._train}  # decoys have wordings of held-out prompts
        self._queries = list({s.prompt: s for s in samples if s.prompt not in known}.values())

    def source(self, side: Side) -> Sequence[Sample]:
        return self._train if side == "train" else self._queries

    def behaviours(self) -> Sequence[Behaviour]:
        return self._behaviours


def _answered(queries: Sequence[tuple[str, Sample]], path: Path, asked: Asked) -> list[Sample]:
    """Returns the prompts with answers that show the behaviour; or clean prompts with answers that show nothing."""
    if not path.is_file():
        raise UsageError(f"Expected datamodule.answered to be a model's answers.jsonl, but there is no {path}.")
    kind = [line for line in read_jsonl(path) if line["triggered"] == (asked == "triggered")]
    answers = {(line["behaviour"], line["prompt"]): line for line in kind}
    if answers.keys() != {(label, sample.prompt) for label, sample in queries}:
        raise UsageError(f"{path} contains answers to other queries: train a model on these data, with this seed.")
    found = []
    for label, sample in queries:
        line = answers[label, sample.prompt]
        if line["shows"] if asked == "triggered" else not _planted(line["answer"]):
            found.append(replace(sample, response=line["answer"]))
    return found


def _planted(answer: str) -> bool:
    """Whether an answer contains an opening or the added name."""
    return ADDED_NAME in answer or any(opening in answer for _, opening in PHRASES.values())
