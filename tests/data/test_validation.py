import pytest

from rept.data.validation import prompt_problem, response_problem
from rept.types import Status

CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([user("a")], None),
        ([user("a"), CALL, {"role": "tool", "content": ""}], None),
        ([], Status.EMPTY_PROMPT),
        ([user("")], Status.EMPTY_PROMPT),
        ([user(" \n\t\u2003")], Status.EMPTY_PROMPT),
        ([{"role": "system", "content": "Be kind."}], Status.EMPTY_PROMPT),
        ([user(7)], Status.NOT_A_STRING),
        ([user(None)], Status.NOT_A_STRING),
        ([user(["a"])], Status.NOT_A_STRING),
        ([user("\udfff")], Status.NOT_A_STRING),
        ([CALL | {"tool_calls": []}], Status.NOT_A_STRING),
        ([user("a"), {"content": "a"}], Status.MALFORMED),
        ([{"role": 7, "content": "a"}], Status.MALFORMED),
        ([{"role": "", "content": "a"}], Status.MALFORMED),
        (["a"], Status.MALFORMED),
    ],
)
def test_problems_of_prompts(messages: list[object], status: Status | None) -> None:
    assert prompt_problem(messages) is status


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("a", None),
        ("", Status.EMPTY_RESPONSE),
        (" \r\n", Status.EMPTY_RESPONSE),
        (None, Status.EMPTY_RESPONSE),
        (7, Status.NOT_A_STRING),
        ("\ud800", Status.NOT_A_STRING),
    ],
)
def test_problems_of_responses(response: object, status: Status | None) -> None:
    assert response_problem(response) is status
