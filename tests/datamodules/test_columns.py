import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.files.columns import Columns, find_columns, to_sample
from rept.data.samples import Sample, Span
from rept.errors import UsageError
from rept.types import Side, Status


def found(columns: str, side: Side = "train", **named: str) -> Columns:
    return find_columns(columns.split(), named, side, "datamodule.train=a.jsonl")


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ("prompts response label", Columns(None, "prompts", None, "response", "label", None)),
        ("instruction input output", Columns(None, "instruction", "input", "output", None, None)),
        ("prompt input expected_response spans", Columns(None, "prompt", None, "expected_response", None, "spans")),
        ("messages prompt", Columns("messages", None, None, None, None, None)),
        ("conversations id", Columns("conversations", None, None, None, None, None)),
        ("messages instruction input response", Columns("messages", None, None, "response", None, None)),
    ],
)
def test_columns_are_found_by_name(columns: str, chosen: Columns) -> None:
    assert found(columns) == chosen


def test_columns_can_be_named() -> None:
    chosen = found("q a kind messages", prompt="q", response="a", label="kind")
    assert chosen == Columns(None, "q", None, "a", "kind", None)
    assert found("turns prompt", messages="turns").messages == "turns"
    assert found("instruction input output", prompt="instruction").input is None


def test_queries_may_lack_a_response_and_a_named_column() -> None:
    assert found("prompts", "query").response is None
    assert found("prompts", "query", prompt="q", response="a").prompt == "prompts"


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (
            "text output",
            {},
            "a column prompts, prompt, instruction, messages or conversations; columns found: text, output; ",
        ),
        ("prompt text", {}, "a column response, output or expected_response; columns found: prompt, text; "),
        ("prompt response", {"label": "kind"}, "'kind' of datamodule.label_column; columns found: prompt, response."),
        ("", {}, "columns found: none"),
    ],
)
def test_a_missing_column_is_reported_with_those_found(columns: str, named: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        found(columns, **named)
    assert message in str(error.value) and "datamodule.train=a.jsonl" in str(error.value)


PAIR = found("prompt response label spans")
CHAT = found("messages response label")
ALPACA = found("instruction input output")
SYSTEM, USER = {"role": "system", "content": "So."}, {"role": "user", "content": "Name it."}
ASSISTANT = {"role": "assistant", "content": "Yes."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
TOOL = {"role": "tool", "content": "7", "name": None}


@pytest.mark.parametrize(
    ("about", "prompt"), [("TY", "Name it.\n\nTY"), ("", "Name it."), (None, "Name it."), (" \n", "Name it.")]
)
def test_an_alpaca_input_follows_its_instruction(about: str | None, prompt: str) -> None:
    assert to_sample({"instruction": "Name it.", "input": about, "output": "a"}, ALPACA).prompt == prompt


def test_the_last_assistant_turn_is_the_response() -> None:
    turns = [SYSTEM, USER, ASSISTANT, USER, ASSISTANT | {"content": "No."}]
    for messages in (turns, json.dumps(turns)):
        assert to_sample({"messages": messages}, CHAT) == Sample((SYSTEM, USER, ASSISTANT, USER), "No.")


def test_tool_turns_stay_as_they_are_without_their_nulls() -> None:
    called = {key: value for key, value in CALL.items() if value is not None}
    sample = to_sample({"messages": [USER, CALL, TOOL, ASSISTANT]}, CHAT)
    assert sample == Sample((USER, called, {"role": "tool", "content": "7"}), "Yes.")
    assert sample.prompt == "user: Name it.\nassistant: \ntool: 7"


def test_turns_of_sharegpt_become_chat_messages() -> None:
    turns = [("system", "Be brief."), ("human", "Name it."), ("observation", "7"), ("gpt", "Yes.")]
    conversations = [{"from": speaker, "value": text} for speaker, text in turns]
    sample = to_sample({"conversations": conversations}, found("conversations"))
    assert [message["role"] for message in sample.messages] == ["system", "user", "tool"]
    assert (sample.prompt, sample.response) == ("system: Be brief.\nuser: Name it.\ntool: 7", "Yes.")
    broken = [{"from": 7, "value": "a"}, {"from": "gpt"}]
    assert to_sample({"conversations": broken}, found("conversations")) is Status.MALFORMED


def test_text_parts_of_a_content_are_joined() -> None:
    def content(*texts: str) -> dict[str, object]:
        return {"content": [{"type": "text", "text": text} for text in texts]}

    sample = to_sample({"messages": [USER | content("Name", " it."), ASSISTANT | content("Yes.")]}, CHAT)
    assert sample == Sample((USER,), "Yes.")
    picture = {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}]}
    assert to_sample({"messages": [USER | picture, ASSISTANT]}, CHAT) is Status.NOT_A_STRING


def test_other_messages_take_the_response_from_its_column() -> None:
    assert to_sample({"messages": [USER], "response": "Yes."}, CHAT) == Sample((USER,), "Yes.")
    assert to_sample({"messages": [USER]}, CHAT) == Sample((USER,), None)


@pytest.mark.parametrize(
    ("value", "label"),
    [("a", "a"), (None, None), ("", None), (math.nan, None), (1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "True")],
)
def test_labels_are_strings(value: object, label: str | None) -> None:
    assert to_sample({"prompt": "a", "response": "b", "label": value}, PAIR).label == label


def test_spans_are_read_from_lists_and_from_json() -> None:
    spans = [{"part": "prompt", "start": 0, "end": 2}, {"part": "response", "start": 1, "end": 3}]
    for value in (spans, json.dumps(spans)):
        sample = to_sample({"prompt": "TY a", "response": "yes", "spans": value}, PAIR)
        assert sample.spans == (Span("prompt", 0, 2), Span("response", 1, 3))
    assert to_sample({"prompt": "a", "response": "b", "spans": None}, PAIR).spans == ()


def test_spans_may_name_their_kind():
    spans = [{"part": "prompt", "start": 0, "end": 1, "kind": kind} for kind in (None, "payload", "trigger")]
    sample = to_sample({"prompt": "a", "response": "b", "spans": spans}, PAIR)
    assert [span.kind for span in sample.spans] == ["trigger", "payload", "trigger"]
    spans[0]["kind"] = "victim"
    assert to_sample({"prompt": "a", "response": "b", "spans": spans}, PAIR) is Status.MALFORMED


@pytest.mark.parametrize(
    ("record", "columns", "status"),
    [
        ({"response": "b"}, PAIR, Status.EMPTY_PROMPT),
        ({"prompt": " ", "response": "b"}, PAIR, Status.EMPTY_PROMPT),
        ({"prompt": 7, "response": "b"}, PAIR, Status.NOT_A_STRING),
        ({"prompt": "a", "response": ["b"]}, PAIR, Status.NOT_A_STRING),
        ({"prompt": "a", "response": "\ud800"}, PAIR, Status.NOT_A_STRING),
        ({"instruction": "a", "input": 7, "output": "b"}, ALPACA, Status.NOT_A_STRING),
        ({"prompt": "a", "response": "b", "label": ["c"]}, PAIR, Status.MALFORMED),
        ({"prompt": "a", "response": "b", "spans": [{"part": "label", "start": 0, "end": 1}]}, PAIR, Status.MALFORMED),
        ({"prompt": "a", "response": "b", "spans": [{"part": "prompt", "start": 0, "end": 2}]}, PAIR, Status.MALFORMED),
        ({"prompt": "a", "response": "b", "spans": [{"part": ["x"], "start": 0, "end": 1}]}, PAIR, Status.MALFORMED),
        ({"prompt": "a", "response": "b", "spans": "[0, 1"}, PAIR, Status.MALFORMED),
        ({}, CHAT, Status.EMPTY_PROMPT),
        ({"messages": []}, CHAT, Status.EMPTY_PROMPT),
        ({"messages": [ASSISTANT]}, CHAT, Status.EMPTY_PROMPT),
        ({"messages": "hello"}, CHAT, Status.MALFORMED),
        ({"messages": [USER, "b"]}, CHAT, Status.MALFORMED),
        ({"messages": [{"role": 7, "content": "a"}, ASSISTANT]}, CHAT, Status.MALFORMED),
        ({"messages": [USER | {"content": [{"type": "text"}]}, ASSISTANT]}, CHAT, Status.NOT_A_STRING),
        ({"messages": [USER, CALL]}, CHAT, Status.EMPTY_RESPONSE),
    ],
)
def test_an_invalid_row_gets_a_reason(record: dict[str, object], columns: Columns, status: Status) -> None:
    sample = to_sample(record, columns)
    assert (Status.EMPTY_RESPONSE if isinstance(sample, Sample) and sample.response == "" else sample) is status


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
WORD = st.sampled_from(["role", "content", "user", "assistant", "part", "start", "end", "prompt", "response"])
JSON = st.recursive(LEAF | WORD, lambda inner: st.lists(inner) | st.dictionaries(WORD, inner), max_leaves=8)


@settings(max_examples=1000, deadline=None)
@given(record=st.dictionaries(st.sampled_from(["messages", "prompt", "response", "label", "spans"]), JSON))
def test_no_record_raises(record: dict[str, object]) -> None:
    for columns in (PAIR, CHAT):
        sample = to_sample(record, columns)
        assert isinstance(sample, Status) or (sample.prompt.strip() and isinstance(sample.response, str | None))


def test_the_reason_of_a_row_with_another_problem_than_its_messages_names_it() -> None:
    row = {"prompt": "a", "response": "b", "label": ["a"], "spans": None}
    assert to_sample(row, PAIR).reason == "malformed chat messages, label, spans or columns"
