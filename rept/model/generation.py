"""Greedy answers of a model, batched without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import nn

from rept.model.placement import input_device, is_split


def greedy_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 16,
    on_batch: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """The model's greedy continuation of each prompt, in the prompts' order, without special tokens.

    Prompts of equal length go through together, so nothing is padded and an answer does not depend on its neighbours
    beyond float rounding.

    Args:
        prompts: token ids, each ending where the answer begins; none empty.
        max_new_tokens: most tokens of an answer; it ends earlier at the model's end-of-sequence token.
        on_batch: told how many prompts were answered, after each batch.
    """
    answers = [""] * len(prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = input_device(model)
    together = is_split(model)  # all ranks answer all prompts, and go on until all have ended
    for numbers in equal_lengths(prompts, batch_size):
        ids = torch.tensor([list(prompts[i]) for i in numbers], device=device)
        with torch.no_grad():  # not in inference mode: gathered weights must serve a backward pass later
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                synced_gpus=together,
            )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(numbers, texts, strict=True):
            answers[i] = text.strip()
        on_batch(len(numbers))
    return answers


def equal_lengths(prompts: Sequence[Sequence[int]], batch_size: int = 16) -> Iterator[tuple[int, ...]]:
    """Prompt numbers in groups of one length, at most ``batch_size`` each."""

    def length(i: int) -> int:
        return len(prompts[i])

    for _, group in groupby(sorted(range(len(prompts)), key=length), key=length):
        while numbers := tuple(islice(group, batch_size)):
            yield numbers
