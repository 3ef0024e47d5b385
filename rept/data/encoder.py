"""Turns samples into token ids, response masks and batches.

The tokenizer's own chat template renders a sample's messages (or a plain one, see :mod:`rept.data.chat_template`), the
whole text is tokenized once, and character positions locate the response. So the prompt's tokens are those that the
model saw in training, and a token across the border belongs to the response.

The string of a special token in a message ("</s>" typed by a user) becomes that token, as in Transformers' own
``apply_chat_template`` and so in training; it is marked as special and moves no border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rept.data.chat_template import ChatTemplate, Rendered
from rept.data.padding import batch_slices, padded
from rept.data.samples import Sample, SpanKind, content_of
from rept.data.token_offsets import Tokens
from rept.data.validation import is_text, prompt_problem, response_problem
from rept.errors import UsageError
from rept.types import Batch, PreTrainedTokenizerBase, Side, Status

Targets = Literal["last", "all"]  # assistant turns that are the response


@dataclass(frozen=True)
class Encoded:
    """A sample as the model reads it, up to the end of the response's turn or the length limit."""

    input_ids: list[int]
    prompt_length: int  # tokens before the response's first, >= 1
    response: list[bool]  # per token: the response's; with targets=all those of several turns, with others between
    special: list[bool]  # per token: a special token or the template's text rather than the sample's
    pieces: list[tuple[int, int]]  # per token: its characters of ``text``, from the end of the previous token
    text: str  # the whole rendered conversation
    cut: bool  # the response was cut at the length limit
    marked: list[SpanKind | None]  # per token: the kind of the sample's span that it overlaps


class Encoder:
    """Tokenizes samples; a sample that no model could learn from gets a Status instead.

    There is one BOS token if the tokenizer's convention has one, never two. A response ends with the template's
    end-of-turn token, without the white space that the template writes after it.

    Args:
        tokenizer: a fast tokenizer (of the tokenizers library), as only these return character positions.
        max_length: maximum tokens of a sample; longer responses are cut.
        targets: the assistant turns that are the response: the last one, or all of them. The prompt ends before the
            first of these; an earlier turn without text, as one that only calls tools, is none of them.

    Raises:
        UsageError: a slow tokenizer, or a chat template that cannot render a simple turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, targets: Targets = "last") -> None:
        from transformers import PreTrainedTokenizerFast  # imported here to keep --help fast

        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UsageError(
                f"Expected a fast tokenizer (one saved with tokenizer.json), which gives the character positions that "
                f"locate the response, but got {type(tokenizer).__name__}."
            )
        self.max_length = max_length
        self.targets = targets
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special.update(tokenizer.all_special_ids)
        self._bos: int | None = tokenizer.bos_token_id
        first: list[int] = tokenizer("a").input_ids[:1]
        self._added_bos = first[: self._count_bos(first)]  # the convention's BOS token, if there is one
        self.pad_id: int = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def __call__(self, sample: Sample) -> Encoded | Status:
        """Returns the sample's tokens, or the reason why it cannot be attributed."""
        return self.encode([sample])[0]

    def encode(self, samples: Sequence[Sample | Status]) -> list[Encoded | Status]:
        """Encodes many samples with one call of the tokenizer; a Status among them is returned as it is."""
        rendered = [sample if isinstance(sample, Status) else self._render(sample) for sample in samples]
        tokenized = iter(self._tokenize([whole.text for whole in rendered if isinstance(whole, Rendered)]))
        return [
            sample if isinstance(sample, Status) else self._encoded(sample, whole, tokenized)
            for sample, whole in zip(samples, rendered, strict=True)
        ]

    def of_last_turns(self) -> Encoder:
        """Returns an encoder for which only the last turn is the response, as when the model answers."""
        return self if self.targets == "last" else Encoder(self._tokenizer, self.max_length)

    def prompt(self, sample: Sample) -> list[int] | Status:
        """Returns the token ids before the model's answer; the sample's response is not read."""
        problem = prompt_problem(sample.messages)
        if problem is not None:
            return problem
        try:
            text = self._template.text(sample.messages, generation_prompt=True)
        except Exception:  # templates are user code and can raise anything
            return Status.MALFORMED
        if not is_text(text):
            return Status.NOT_A_STRING
        ids = self._tokenize([text])[0].ids
        return ids if len(ids) < self.max_length else Status.PROMPT_TOO_LONG

    def leading_bos(self, sample: Sample) -> int:
        """Returns how many BOS tokens the chat template itself writes before the text; 0 if it cannot render it."""
        rendered = self._render(sample)
        if isinstance(rendered, Status):
            return 0
        return self._count_bos(self._tokenizer(rendered.text, add_special_tokens=False).input_ids)

    def _render(self, sample: Sample) -> Rendered | Status:
        problem = prompt_problem(sample.messages) or response_problem(sample.response)
        if problem is not None:
            return problem
        try:
            messages = [*sample.messages, {"role": "assistant", "content": sample.response}]
            rendered = self._template.render(messages, self._earlier_turns(sample))
        except Exception:  # as in prompt()
            return Status.MALFORMED
        if rendered is None:
            return Status.MALFORMED
        return rendered if is_text(rendered.text) else Status.NOT_A_STRING

    def _earlier_turns(self, sample: Sample) -> list[int]:
        """The numbers of the messages before the last that are responses too."""
        if self.targets == "last":
            return []
        return [i for i, one in enumerate(sample.messages) if one["role"] == "assistant" and content_of(one).strip()]

    def _tokenize(self, texts: list[str]) -> list[Tokens]:
        """Tokenizes texts, with BOS by the tokenizer's convention."""
        if not texts:
            return []
        encoding = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        tokens = zip(encoding.input_ids, encoding.offset_mapping, strict=True)
        return [Tokens(*self._with_bos(ids, offsets)) for ids, offsets in tokens]

    def _with_bos(self, ids: list[int], offsets: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        leading = self._count_bos(ids)
        added = [] if leading else self._added_bos
        extra = max(leading - 1, 0)
        return [*added, *ids[extra:]], [*((0, 0) for _ in added), *offsets[extra:]]

    def _count_bos(self, ids: list[int]) -> int:
        """Returns how many BOS tokens ``ids`` starts with."""
        return next((i for i, token in enumerate(ids) if token != self._bos), len(ids))

    def _encoded(self, sample: Sample, whole: Rendered | Status, tokenized: Iterator[Tokens]) -> Encoded | Status:
        if isinstance(whole, Status):
            return whole
        tokens = next(tokenized)
        last = tokens.response(whole, self._special)
        if not last:
            return Status.EMPTY_RESPONSE
        earlier = [place for place in whole.prompt if place.message in self._earlier_turns(sample)]
        turns = [*(tokens.earlier_response(whole, place, self._special) for place in earlier), last]
        response = {i for turn in turns for i in turn}
        prompt_length = min(response)
        if prompt_length == 0:  # no position predicts the response's first token
            return Status.MALFORMED
        if prompt_length >= self.max_length:
            return Status.PROMPT_TOO_LONG
        length = min(last.stop, self.max_length)
        ids = tokens.ids[:length]
        places = (*whole.prompt, whole.response)
        own = {i for place in places for i in tokens.overlapping(place.start, place.end)}
        marked = {
            i: kind for start, end, kind in _marked_characters(sample, whole) for i in tokens.overlapping(start, end)
        }
        return Encoded(
            input_ids=ids,
            prompt_length=prompt_length,
            response=[i in response for i in range(length)],
            special=[i not in own or token in self._special for i, token in enumerate(ids)],
            pieces=tokens.pieces[:length],
            text=whole.text,
            cut=length < last.stop,
            marked=[marked.get(i) for i in range(length)],
        )


def sorted_batches(
    encoder: Encoder, rows: Iterable[tuple[int, Sample | Status]], side: Side = "train", tokens_per_batch: int = 2048
) -> list[Batch]:
    """Returns the batches of numbered samples, sorted by (tokens, number).

    The samples that the encoder refuses are set aside in the first batch, which may be empty otherwise.
    """
    rows = list(rows)
    usable: list[tuple[int, Sample, Encoded]] = []
    set_aside: list[tuple[int, Status]] = []
    for (number, sample), encoded in zip(rows, encoder.encode([sample for _, sample in rows]), strict=True):
        if isinstance(encoded, Status):
            set_aside.append((number, encoded))
        elif isinstance(sample, Sample):
            usable.append((number, sample, encoded))
    usable.sort(key=lambda one: (len(one[2].input_ids), one[0]))
    slices = batch_slices([len(encoded.input_ids) for *_, encoded in usable], tokens_per_batch)
    return [collate(usable[one], side, encoder.pad_id, () if i else set_aside) for i, one in enumerate(slices)]


def collate(
    rows: Sequence[tuple[int, Sample, Encoded]], side: Side, pad_id: int, set_aside: Iterable[tuple[int, Status]] = ()
) -> Batch:
    """Returns a batch of encoded samples, right padded to the longest; without samples, B and T are 0."""
    input_ids, labels = padded([(torch.tensor(e.input_ids), torch.tensor(e.response)) for _, _, e in rows], pad_id)
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


def _marked_characters(sample: Sample, whole: Rendered) -> list[tuple[int, int, SpanKind | None]]:
    """Returns the sample's spans as characters of the rendered text, with their kinds."""
    starts = sample.content_starts if sample.spans else []
    found = []
    for span in sample.spans:
        for place in (whole.response,) if span.part == "response" else whole.prompt:
            shift = place.start - place.skipped - (starts[place.message] if span.part == "prompt" else 0)
            start, end = max(span.start + shift, place.start), min(span.end + shift, place.end)
            if start < end:
                found.append((start, end, span.kind))
    return found
