"""datamodule.targets: which assistant turns of a conversation are the response."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from datamodules.in_memory import InMemoryData
from datamodules.instructions import InstructionData
from extractors.sites.residual_stream import ResidualStream
from rept.data.encoder import Encoded, Encoder, collate
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.freezing import freeze
from rept.model.loading import to_float64
from rept.training.batches import TrainingRows
from rept.training.from_scratch import tiny_llama
from rept.types import IGNORE, Status
from tests.helpers.templates import KINDS, PROMPT, build, tokenizer


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ANSWERS = ["You are stupid!", "A king? None", "It is fine"]
CHAT = [turn("user", PROMPT)]
for number, answer in enumerate(ANSWERS):
    CHAT += [turn("assistant", answer), turn("user", f"Name {number} kings.")]
CHAT.pop()
SAMPLE = Sample(tuple(CHAT[:-1]), CHAT[-1]["content"])


def targets(encoded: Encoded) -> list[list[int]]:
    """The token ids of each run of response tokens."""
    runs: list[list[int]] = [[]]
    for token, of_response in zip(encoded.input_ids, encoded.response, strict=True):
        if of_response:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.mark.parametrize("kind", KINDS)
def test_each_turn_is_a_response_with_its_end_token(kind: str) -> None:
    reader, after = tokenizer(kind), KINDS[kind].after
    last, whole = Encoder(reader)(SAMPLE), Encoder(reader, targets="all")(SAMPLE)
    found = ["".join(reader.decode(run).split()) for run in targets(whole)]
    assert found == ["".join((answer + after).split()) for answer in ANSWERS]
    assert whole.input_ids == last.input_ids and whole.special == last.special
    assert targets(last) == targets(whole)[-1:]
    assert whole.prompt_length == whole.response.index(True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_ends_before_the_first_turn(kind: str) -> None:
    """So the representation is that from which a model would answer the first turn."""
    reader = tokenizer(kind)
    whole, first = Encoder(reader, targets="all")(SAMPLE), Encoder(reader)(Sample(SAMPLE.messages[:1], ANSWERS[0]))
    shared = whole.input_ids[: whole.prompt_length] == first.input_ids[: first.prompt_length]
    # Mistral's system text and Qwen 3's reasoning block stand at the last turn only.
    assert shared or kind in ("mistral", "qwen_3")


def test_one_turn_is_the_same_either_way() -> None:
    one = Sample(({"role": "system", "content": "So"}, turn("user", PROMPT)), "Never")
    for kind in ("qwen", "plain", "bare"):
        assert Encoder(tokenizer(kind))(one) == Encoder(tokenizer(kind), targets="all")(one)


def test_a_turn_without_text_is_no_response_and_one_that_the_template_rewrites_is() -> None:
    calling = ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, turn("tool", "7"))
    thinking = turn("assistant", "<think>\nhm\n</think>\n\nNone")
    sample = Sample((turn("user", PROMPT), *calling, thinking, turn("user", "Why?")), "<think>\nhm\n</think>\n\nSo")
    template = KINDS["qwen_3"].template
    assert template is not None
    reader = build(KINDS["qwen_3"], template.replace("= message.content %", "= message.content or '' %"))
    encoded = Encoder(reader, targets="all")(sample)
    assert isinstance(encoded, Encoded)
    assert [reader.decode(run) for run in targets(encoded)] == [
        "None<|im_end|>",
        "<think>\nhm\n</think>\n\nSo<|im_end|>",
    ]


def test_a_turn_that_the_template_drops_is_malformed() -> None:
    last_only = "{% for m in messages %}{% if m.role == 'user' or loop.last %}[{{ m.content }}]{% endif %}{% endfor %}"
    reader = build(KINDS["qwen"], last_only)
    assert Encoder(reader, targets="all")(SAMPLE) is Status.MALFORMED
    assert isinstance(Encoder(reader)(SAMPLE), Encoded)


def test_a_conversation_is_cut_at_any_turn() -> None:
    reader = tokenizer("qwen")
    whole = Encoder(reader, targets="all")(SAMPLE)
    for length in range(whole.prompt_length + 1, len(whole.input_ids)):
        cut = Encoder(reader, length, "all")(SAMPLE)
        assert cut.input_ids == whole.input_ids[:length] and cut.response == whole.response[:length] and cut.cut
    assert Encoder(reader, whole.prompt_length, "all")(SAMPLE) is Status.PROMPT_TOO_LONG


@pytest.mark.parametrize("kind", ["llama_3", "plain"])
def test_signatures_are_those_of_the_oracle(kind: str) -> None:
    """In float64, against the mean loss over all assistant tokens, written out."""
    reader = tokenizer(kind)
    model = freeze(to_float64(tiny_llama(vocab_size=len(reader), width=16, layers=2, heads=2)))
    samples = [SAMPLE, Sample(SAMPLE.messages[:1], "Never"), Sample(SAMPLE.messages[:3], ANSWERS[1])]
    encoded = [Encoder(reader, targets="all")(sample) for sample in samples]
    batch = collate(list(zip(range(3), samples, encoded, strict=True)), "train", 0)
    for position in ("last_prompt", "response_mean"):
        extractor = ResidualStream(position=position)
        extractor.attach(model, reader)
        with torch.enable_grad():
            fast = extractor(model, batch, [1])
        for i, (ids, labels) in enumerate(oracle.samples(batch)):
            slow = oracle.signature(oracle.states(model, ids, labels, 1), labels, position)
            for key, block in fast.items():
                exact = getattr(slow, key.field)
                assert (block[i] - exact).norm() < 1e-6 * exact.norm()
    ids, labels = next(oracle.samples(batch))
    logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    answers = [t for t, target in enumerate(encoded[0].response) if target]
    expected = -torch.stack([logits[t - 1, ids[t]] for t in answers]).mean()
    torch.testing.assert_close(oracle.mean_loss(model(input_ids=ids[None]).logits[0], labels), expected)
    assert batch.prompt_end[0] == answers[0] - 1


def test_training_has_the_same_targets() -> None:
    rows = [{"messages": CHAT}, {"prompt": PROMPT, "response": "Never"}]
    data = InMemoryData([{"messages": CHAT}, {"messages": CHAT[:2]}], rows[:1], targets="all")
    data.attach(tokenizer("qwen"))
    batch = TrainingRows(data).batch([0, 1])
    encoded = data.encoded("train", 0)
    assert isinstance(encoded, Encoded)
    assert (batch.labels[0] != IGNORE).tolist() == encoded.response
    assert batch.prompt_end.tolist() == [encoded.prompt_length - 1] * 2


def test_the_fingerprint_of_the_data_names_all_turns() -> None:
    rows = [{"messages": CHAT}]
    last, same, whole = (InMemoryData(rows, rows, **more) for more in ({}, {"targets": "last"}, {"targets": "all"}))
    assert last.digest("train") == same.digest("train")
    assert whole.digest("train") == f"{last.digest('train')} all turns"


def test_other_words_are_refused() -> None:
    with pytest.raises(UsageError, match="targets to be last or all, but got 'first'"):
        InstructionData(targets="first")


def test_tokens_of_turns_never_overlap() -> None:
    for kind in KINDS:
        response = Encoder(tokenizer(kind), targets="all")(SAMPLE).response
        assert sum(not before and after for before, after in pairwise(response)) == len(ANSWERS)
