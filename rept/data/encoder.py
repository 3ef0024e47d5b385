"""Samples: what a row says, how a model reads it, and what can be wrong with it.

Holds Span, Sample, Encoded, Encoder, collate.

A sample becomes tokens in three steps: its messages are rendered by the tokenizer's own chat template (or a documented
plain one, see template.py), the whole text is tokenized once, and the response is found by character positions. So the
prompt's tokens are the ones the model saw in training, and a token that straddles the border counts as response.

A special token's string in a message ("</s>" typed by a user) becomes that token, as in Transformers' own
``apply_chat_template`` and hence in training; it is marked as special, and moves no border.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rept.data.chat_template import ChatTemplate, Rendered
from rept.data.padding import padded
from rept.data.samples import Sample
from rept.data.token_offsets import Tokens
from rept.data.validation import content_of, is_text, prompt_problem, response_problem
from rept.errors import UsageError
from rept.types import Batch, Side, Status


@dataclass(frozen=True)
class Encoded:
    """A sample as the model reads it, up to the end of the response's turn or the length limit."""

    input_ids: list[int]
    prompt_length: int  # tokens before the first response token, >= 1; all later tokens are the response's
    special: list[bool]  # per token: a special token or the template's text, not the sample's words
    pieces: list[tuple[int, int]]  # per token: characters of ``text``, each starting where the last one ends
    text: str  # the rendered whole
    cut: bool  # the response was cut at the length limit
    marked: list[bool]  # per token: overlaps one of the sample's spans


class Encoder:
    """Turns samples into tokens. Only samples that no model could learn from get a Status instead.

    BOS: one where the tokenizer's own convention has one, never two. End of a response: the template's end-of-turn
    token, included; white space that the template writes after it is left out.

    Args:
        tokenizer: a fast one (of the tokenizers library), for only these know their tokens' character positions.
        max_length: most tokens of a sample; longer ones lose the end of their response.

    Raises:
        UsageError: a slow tokenizer, or a chat template that cannot render a simple turn.
    """

    def __init__(self, tokenizer: Any, max_length: int = 1024) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                f"Expected a fast tokenizer (one saved with tokenizer.json), for the response is found by character "
                f"positions, but got {type(tokenizer).__name__}, which does not give them."
            )
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special.update(tokenizer.all_special_ids)
        self._bos = tokenizer.bos_token_id
        self._adds_bos = self._bos is not None and tokenizer("a")["input_ids"][:1] == [self._bos]
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(i for i in pads if i is not None)

    def __call__(self, sample: Sample) -> Encoded | Status:
        """The sample's tokens, or the reason why it cannot be attributed."""
        return self.encode([sample])[0]

    def encode(self, samples: Sequence[Sample | Status]) -> list[Encoded | Status]:
        """Many samples with one call of the tokenizer; a Status among them stays. The result is that of one by one."""
        rendered = [sample if isinstance(sample, Status) else self._render(sample) for sample in samples]
        texts = [whole.text for whole in rendered if isinstance(whole, Rendered)]
        tokens = iter(self._tokenize(texts))
        return [
            self._place(sample, whole, next(tokens)) if isinstance(whole, Rendered) else whole
            for sample, whole in zip(samples, rendered, strict=True)
        ]

    def prompt(self, sample: Sample) -> list[int] | Status:
        """Token ids that end where the model's answer begins; the response is not read."""
        problem = prompt_problem(sample.messages)
        if problem is not None:
            return problem
        try:
            text = self._template.text(sample.messages, generation_prompt=True)
        except Exception:  # a template is a program of the user's: it can raise anything
            return Status.MALFORMED
        if not is_text(text):
            return Status.NOT_A_STRING
        ids = self._tokenize([text])[0].ids
        return ids if len(ids) < self.max_length else Status.PROMPT_TOO_LONG

    def leading_bos(self, sample: Sample) -> int:
        """BOS tokens that the chat template itself writes before the text; 0 where it writes none, or cannot render."""
        rendered = self._render(sample)
        if isinstance(rendered, Status) or self._bos is None:
            return 0
        ids = self._tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        return next((i for i, token in enumerate(ids) if token != self._bos), len(ids))

    def _render(self, sample: Sample) -> Rendered | Status:
        problem = prompt_problem(sample.messages) or response_problem(sample.response)
        if problem is not None:
            return problem
        try:
            rendered = self._template.render([*sample.messages, {"role": "assistant", "content": sample.response}])
        except Exception:  # as above
            return Status.MALFORMED
        if rendered is None:
            return Status.MALFORMED
        return rendered if is_text(rendered.text) else Status.NOT_A_STRING

    def _tokenize(self, texts: list[str]) -> list[Tokens]:
        """The tokens of each text, with BOS as the tokenizer's convention has it."""
        if not texts:
            return []
        made = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        tokens = zip(made["input_ids"], made["offset_mapping"], strict=True)
        return [Tokens(*self._with_bos(ids, offsets)) for ids, offsets in tokens]

    def _with_bos(self, ids: list[int], offsets: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        if self._adds_bos and ids[:1] != [self._bos]:
            return [self._bos, *ids], [(0, 0), *offsets]
        extra = 0
        while self._bos is not None and ids[extra : extra + 2] == [self._bos, self._bos]:
            extra += 1
        return ids[extra:], offsets[extra:]

    def _place(self, sample: Sample, whole: Rendered, tokens: Tokens) -> Encoded | Status:
        response = tokens.response(whole, self._special)
        if not response:
            return Status.EMPTY_RESPONSE
        if response.start == 0:  # nothing stands before the response, so no position predicts it
            return Status.MALFORMED
        if response.start >= self.max_length:
            return Status.PROMPT_TOO_LONG
        length = min(response.stop, self.max_length)
        template, marked = [True] * response.stop, [False] * response.stop
        for place in (*whole.prompt, whole.response):
            _set(template, tokens.overlapping(place.start, place.end), False)
        for start, end in _poisoned(sample, whole):
            _set(marked, tokens.overlapping(start, end), True)
        return Encoded(
            input_ids=tokens.ids[:length],
            prompt_length=response.start,
            special=[i in self._special or other for i, other in zip(tokens.ids[:length], template, strict=False)],
            pieces=tokens.pieces[:length],
            text=whole.text,
            cut=length < response.stop,
            marked=marked[:length],
        )


def collate(
    rows: Sequence[tuple[int, Sample, Encoded]],
    side: Side,
    pad_id: int,
    set_aside: Iterable[tuple[int, Status]] = (),
) -> Batch:
    """A batch of encoded samples, padded on the right to the longest; B and T are 0 where there are none."""
    input_ids, labels = padded([(torch.tensor(e.input_ids), e.prompt_length) for _, _, e in rows], pad_id)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        prompt_end=torch.tensor([encoded.prompt_length - 1 for _, _, encoded in rows], dtype=torch.int64),
        length=torch.tensor([len(encoded.input_ids) for _, _, encoded in rows], dtype=torch.int64),
        row=torch.tensor([row for row, _, _ in rows], dtype=torch.int64),
        cut=torch.tensor([encoded.cut for _, _, encoded in rows], dtype=torch.bool),
        side=side,
        text=tuple((sample.prompt, sample.response or "") for _, sample, _ in rows),
        set_aside=tuple(set_aside),
    )


def _set(flags: list[bool], tokens: range, value: bool) -> None:
    flags[tokens.start : tokens.stop] = [value] * len(tokens)


def _poisoned(sample: Sample, whole: Rendered) -> list[tuple[int, int]]:
    """The sample's spans as characters of the rendered text."""
    lengths = [len(content_of(message)) for message in sample.messages]
    heads = [0] if len(lengths) == 1 else [len(f"{m.get('role')}: ") for m in sample.messages]
    begins = [sum(lengths[:i]) + sum(heads[: i + 1]) + i for i in range(len(lengths))]  # in Sample.prompt
    found = []
    for span in sample.spans:
        places = (whole.response,) if span.part == "response" else whole.prompt
        for place in places:
            shift = place.start - place.skipped - (begins[place.message] if span.part == "prompt" else 0)
            start, end = max(span.start + shift, place.start), min(span.end + shift, place.end)
            if start < end:
                found.append((start, end))
    return found
