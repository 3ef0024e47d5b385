"""A chat template given by model.chat_template, and the training row that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.in_memory import InMemoryData
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.run.dry_run import estimate
from rept.run.pipeline import attribute
from rept.run.prepare import prepare
from rept.run.rendered_row import MOST_CHARACTERS, rendered_row, show_rendered_row
from rept.training.initial_model import initial_model
from tests.conftest import Material
from tests.helpers.templates import tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role | upper }}> {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT> {% endif %}"
)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    return tmp_path / "mine.jinja"


def test_samples_are_rendered_by_the_template_given(material: Material, template: Path, tmp_path: Path) -> None:
    config = material.config(tmp_path / "run", f"model.chat_template={template}")
    job = prepare(config)
    first = job.datamodule.sample("train", 0)
    assert isinstance(first, Sample)
    shown = rendered_row(job.datamodule)
    assert shown == {
        "row": 0,
        "parts": [(f"USER> {first.prompt}\nASSISTANT>", False), (f" {first.response}<|end|>", True)],
    }
    trace = attribute(config, show_result=False)
    assert trace.provenance["rendered"] == {"row": 0, "parts": [list(part) for part in shown["parts"]]}


def test_another_template_is_another_run(material: Material, template: Path, tmp_path: Path) -> None:
    attribute(material.config(tmp_path / "run"), show_result=False)
    with pytest.raises(UsageError, match="template"):
        attribute(material.config(tmp_path / "run", f"model.chat_template={template}"), show_result=False)


def test_a_training_saves_the_template_given(material: Material, template: Path) -> None:
    node = {"path": str(material.model), "chat_template": str(template)}
    assert initial_model(node, InMemoryData(material.rows, material.asked))[1].chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read .No such file or directory.; expected a file with a Jinja chat template"),
        (b"\xff\xfe", "cannot be read .not UTF-8 text."),
        (b" \n", "is empty"),
        (b"{% for %}", "a chat template that renders a user turn and its answer, but it fails: Expected an expression"),
        (b"hello", "a chat template that writes the assistant's turn, but it does not"),
    ],
)
def test_a_template_that_cannot_be_used_is_reported_in_one_sentence(
    material: Material, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"model.chat_template={file}.*{problem}"):
        prepare(material.config(tmp_path / "run", f"model.chat_template={file}"))


def test_the_dry_run_shows_the_row(material: Material, template: Path, tmp_path: Path, capsys) -> None:
    estimate(material.config(tmp_path / "run", f"model.chat_template={template}"))
    out = capsys.readouterr().out
    assert "Training row 0 as the model reads it, the response between ⟦ and ⟧:" in out
    assert f"USER> {material.rows[0]['prompt']}\nASSISTANT>⟦ {material.rows[0]['response']}<|end|>⟧" in out


def test_the_first_row_that_is_not_set_aside_is_shown_with_every_response(capsys) -> None:
    chat = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    data = InMemoryData([{"prompt": "", "response": "x"}, {"messages": chat}], [{"prompt": "q"}], targets="all")
    data.attach(tokenizer("plain"))
    shown = rendered_row(data)
    assert shown is not None and shown["row"] == 1
    assert [part for _, part in shown["parts"]] == [False, True, False, True]
    show_rendered_row(shown)
    assert "User:\na\n\nAssistant:\n⟦b</s>⟧\n\nUser:\nc\n\nAssistant:\n⟦d</s>⟧" in capsys.readouterr().out


def test_a_long_text_is_cut_in_the_middle_and_control_characters_are_shown(capsys) -> None:
    data = InMemoryData([{"prompt": "a" * 5000 + "\x1b[31m", "response": "so"}], [{"prompt": "q"}], max_length=9000)
    data.attach(tokenizer("plain"))
    shown = rendered_row(data)
    assert shown is not None
    prompt = shown["parts"][0][0]
    assert len(prompt) == MOST_CHARACTERS + 3 and "a … a" in prompt and prompt.endswith("\x1b[31m\n\nAssistant:\n")
    show_rendered_row(shown)
    assert r"\u{1b}[31m" in capsys.readouterr().out


def test_no_row_is_shown_where_all_are_set_aside() -> None:
    data = InMemoryData([{"prompt": "", "response": "x"}] * 3, [{"prompt": "q"}])
    data.attach(tokenizer("plain"))
    assert rendered_row(data) is None
