"""python -m rept rows: rows that were set aside, with their reasons."""

from __future__ import annotations

import pytest

from rept.commands.rows import run
from rept.errors import UsageError
from rept.run.pipeline import attribute
from rept.run.rescore import score
from rept.types import Status


def test_rows_that_were_set_aside_are_listed_with_their_reasons(material, tmp_path, capsys):
    folder = tmp_path / "run"
    attribute(material.config(folder, "tokens.hits=0"), show_result=False)
    score([str(folder), f"out={tmp_path / 'again'}"])
    capsys.readouterr()
    run([str(folder), "--set-aside"])
    reasons = {5: Status.EMPTY_PROMPT, 11: Status.EMPTY_RESPONSE, 17: Status.NOT_A_STRING, 23: Status.PROMPT_TOO_LONG}
    assert capsys.readouterr().out.splitlines() == [f"{row}\t{reasons[row].reason}" for row in reasons]
    for name in ("run", "again"):
        run([str(tmp_path / name)])
        assert "41 rows read; 37 attributed;" in capsys.readouterr().out
    with pytest.raises(UsageError, match=f"again has no signatures of its own: .* {folder}"):
        run([str(tmp_path / "again"), "--set-aside"])


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--set-asides", "a"], ["--set-aside"]])
def test_wrong_arguments_are_reported_in_one_sentence(arguments):
    with pytest.raises(UsageError, match="one run folder and perhaps --set-aside"):
        run(arguments)
