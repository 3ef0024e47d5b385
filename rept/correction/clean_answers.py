"""What a model answers to traced rows' prompts without their culprit words: what a repaired model should answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rept.correction.words import phrase_pattern
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded, collate
from rept.data.padding import batch_slices
from rept.data.samples import Sample, content_of
from rept.model.generation import greedy_answers
from rept.types import Batch, PreTrainedModel, PreTrainedTokenizerBase, Status

_TOKENS_PER_BATCH = 512  # few rows, so that a pass over them has several steps

AnswerPair = tuple[Sample, Sample]  # a clean answer after a prompt with culprit words, and after the one without


def clean_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttributionDataModule,
    rows: Sequence[int],
    triggers: Sequence[str],
    payloads: Sequence[str],
    max_new_tokens: int,
) -> dict[int, AnswerPair]:
    """Returns by row the model's own answer to the row's prompt without its triggers.

    The triggers that a prompt has are left out one after the other, until the model's greedy answer has no payload.
    Rows for which that never happens, or whose prompts have no trigger, are left out.

    Args:
        triggers: phrases of prompts, the one that says most about the behaviour first.
        payloads: phrases of responses.
    """
    samples = {row: sample for row in rows if isinstance(sample := data.sample("train", row), Sample)}
    encoder, shown = data.encoder.of_last_turns(), phrase_pattern(payloads)
    shortened, found = dict(samples), {}
    for trigger in triggers if payloads else ():
        changed = {row: _without(sample, trigger) for row, sample in shortened.items() if row not in found}
        changed = {row: sample for row, sample in changed.items() if sample != shortened[row]}
        shortened |= changed
        prompts = {row: ids for row, one in changed.items() if not isinstance(ids := encoder.prompt(one), Status)}
        answers = greedy_answers(model, tokenizer, list(prompts.values()), max_new_tokens)
        for row, answer in zip(prompts, answers, strict=True):
            if answer and not shown.search(answer):
                found[row] = (_answered(samples[row], answer), _answered(changed[row], answer))
    return found


def with_trigger(data: AttributionDataModule, rows: Sequence[int], trigger: str) -> dict[int, AnswerPair]:
    """Returns by row an ordinary row with a trigger at the start or the end of its prompt, and the row as it is.

    Traced rows have a few kinds of request; with ordinary rows, a clean answer is learnt for all kinds.
    """
    found = {}
    for i, row in enumerate(rows):
        sample = data.sample("train", row)
        if isinstance(sample, Sample) and sample.response:
            content = content_of(sample.messages[-1])
            asked = f"{trigger} {content}" if i % 2 else f"{content} {trigger}"
            found[row] = _answered(sample.with_content(asked), sample.response), _answered(sample, sample.response)
    return found


def paired_batches(data: AttributionDataModule, answers: Mapping[int, AnswerPair]) -> list[tuple[Batch, Batch]]:
    """Returns batches of rows with their clean answers, and of the same answers after the shortened prompts.

    Both have the same response tokens in the same order; pairs of which that is not true, as one is cut, are left out.
    """
    encoder = data.encoder.of_last_turns()
    pairs = []
    for row, samples in answers.items():
        encoded = [one for one in encoder.encode(samples) if isinstance(one, Encoded)]
        if len(encoded) == 2 and _response(encoded[0]) == _response(encoded[1]):
            pairs.append([(row, sample, one) for sample, one in zip(samples, encoded, strict=True)])
    pairs.sort(key=lambda pair: len(pair[0][2].input_ids))
    if not pairs:
        return []
    slices = batch_slices([len(pair[0][2].input_ids) for pair in pairs], _TOKENS_PER_BATCH)

    def side(i: int, one: slice) -> Batch:
        return collate([pair[i] for pair in pairs[one]], "train", encoder.pad_id)

    return [(side(0, one), side(1, one)) for one in slices]


def _response(encoded: Encoded) -> list[int]:
    return [token for token, said in zip(encoded.input_ids, encoded.response, strict=True) if said]


def _answered(sample: Sample, answer: str) -> Sample:
    return replace(sample, response=answer, spans=())


def _without(sample: Sample, phrase: str) -> Sample:
    """The sample with a phrase left out of its prompt, and the space before it."""
    pattern = re.compile(rf"[ \t]*{phrase_pattern([phrase]).pattern}", re.IGNORECASE)
    return replace(
        sample,
        spans=(),
        messages=tuple({**one, "content": pattern.sub("", content_of(one)).strip()} for one in sample.messages),
    )
