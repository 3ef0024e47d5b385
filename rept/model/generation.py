"""Greedy answers of a model, batched without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import cast

import torch
from torch import Tensor

from rept.model.placement import input_device
from rept.model.splitting import is_split
from rept.types import PreTrainedModel, PreTrainedTokenizerBase


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    on_batch: Callable[[int], object] = lambda answered: None,
) -> list[str]:
    """Returns the model's greedy continuation of each prompt, in the prompts' order, without special tokens.

    Prompts of equal length are batched, so nothing is padded and an answer depends on the other prompts only through
    float rounding.

    Args:
        prompts: token ids, each ending where the answer begins; none empty.
        max_new_tokens: maximum tokens of an answer; it ends earlier at the model's end-of-sequence token.
        on_batch: called after each batch with the number of its prompts.
    """
    answers = [""] * len(prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generate = cast("Callable[..., Tensor]", model.generate)  # of Transformers' GenerationMixin
    for numbers in equal_lengths(prompts):
        ids = torch.tensor([list(prompts[i]) for i in numbers], device=input_device(model))
        with torch.no_grad():  # not inference mode: gathered weights are used in a backward pass later
            continued = generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                synced_gpus=is_split(model),  # all ranks generate until all have ended
            )
        texts = tokenizer.batch_decode(continued[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(numbers, texts, strict=True):
            answers[i] = text.strip()
        on_batch(len(numbers))
    return answers


def equal_lengths(prompts: Sequence[Sequence[int]], batch_size: int = 16) -> Iterator[tuple[int, ...]]:
    """Yields the numbers of at most ``batch_size`` prompts of one length, the shortest prompts first."""

    def length(i: int) -> int:
        return len(prompts[i])

    for _, group in groupby(sorted(range(len(prompts)), key=length), key=length):
        while numbers := tuple(islice(group, batch_size)):
            yield numbers
