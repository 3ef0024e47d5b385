"""python attribute.py as a user starts it: the output, and one sentence for each mistake."""

from __future__ import annotations

import pytest

from rept.cli import main
from rept.commands import attribute
from tests.helpers.commands import finish


def fault(capsys, *arguments: str) -> str:
    """The one sentence on stderr; the command runs in this process, as its main() does."""
    code = main("attribute", attribute.USAGE, attribute.run, arguments)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


def test_a_run_prints_hits_tokens_measures_and_rows_and_nothing_of_the_libraries(material, tmp_path):
    code, out, err = finish("attribute.py", *material.arguments(tmp_path / "run"))
    assert (code, err) == (0, "")
    for part in ("Layer 2:", "Blocks of the signature", "Query 0", "culprit tokens in row", "average_precision"):
        assert part in out
    assert (
        "41 rows read; 37 attributed; 1 of them with the response cut at max_length; 1 set aside: empty prompt" in out
    )
    assert str(tmp_path / "run") in out
    assert "GPU available" not in out and "Warning" not in out


def test_help_answers_without_torch():
    code, out, err = finish("-X", "importtime", "attribute.py", "--help")
    assert code == 0 and "datamodule.train" in out
    assert "torch" not in err and "transformers" not in err and "lightning" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["topk=1"], ["did you mean top_k"]),
        (["datamodule=instruction"], ["did you mean datamodule=instructions"]),
        (["datamodule=synthetic", "datamodule.train=a"], ["add the word datamodule=instructions"]),
        (["datamodule.train=/no/such.jsonl"], ["/no/such.jsonl"]),
        (["datamodule.prompt_column=question"], ["question", "columns found", "prompt"]),
        (["model.path=/no/such/model"], ["/no/such/model"]),
        (["layers.layers=[9]"], ["9", "1 to 3"]),
        (["scorer=block_cosine", "extractor.fields=[gradient]"], ["reads representation"]),
        (["tokens.form=loud"], ["published, anchored, matched, distinctive"]),
        (["store.dtype=int8"], ["float16 or float32", "int8"]),
        (["top_k=0"], ["top_k", "at least 1"]),
        (["trainer.devises=2"], ["devises", "did you mean devices"]),
        (["trainer.accelerator=warp"], ["trainer", "warp"]),
        (["extractor._target_=no.such.Extractor"], ["no module"]),
        (["extractor._target_=extractors.sites.residual_stream.ResidualStram"], ["did you mean ResidualStream"]),
    ],
    ids=lambda value: value[-1] if isinstance(value[-1], str) and "=" in value[-1] else "",
)
def test_a_mistake_is_one_sentence_and_exit_2(material, tmp_path, capsys, arguments, words):
    said = fault(capsys, *material.arguments(tmp_path / "run"), *arguments)
    for word in words:
        assert word in said


def test_mistakes_in_the_data_are_reported(material, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n')
    assert "line 2" in fault(capsys, *material.arguments(tmp_path / "run"), f"datamodule.train={broken}")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in fault(capsys, *material.arguments(tmp_path / "run"), f"datamodule.train={empty}")


def test_an_output_folder_that_cannot_be_made_is_reported(material, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fault(capsys, *material.arguments(tmp_path / "file" / "run"))


def test_all_rows_set_aside_is_reported(material, tmp_path, capsys):
    hollow = tmp_path / "hollow.jsonl"
    hollow.write_text('{"prompt": "", "response": "b"}\n' * 3)
    said = fault(capsys, *material.arguments(tmp_path / "run"), f"datamodule.train={hollow}")
    assert "3 empty prompt" in said or "can be attributed" in said


def test_a_dry_run_predicts_and_writes_nothing(material, tmp_path, capsys):
    assert main("attribute", attribute.USAGE, attribute.run, [*material.arguments(tmp_path / "run"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "training rows" in out and "bytes of the store" in out
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder_at_once_are_refused(material, tmp_path, capsys):
    from rept.results.run_folder import RunFolder

    with RunFolder(tmp_path / "run").lock():
        assert "in use by another run" in fault(capsys, *material.arguments(tmp_path / "run"))
