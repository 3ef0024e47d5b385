"""`python -m rept report`: where the page is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rept.commands import report
from rept.errors import UsageError
from tests.helpers.runs import write_run


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("out", "page"), [("new/pages", "new/pages/report.html"), ("new/mine.html", "new/mine.html")])
def test_the_page_of_a_run_that_is_read_only_is_written_elsewhere(tmp_path: Path, out: str, page: str) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run")
    before = content(run)
    report.run([str(run), "--figures", f"out={tmp_path / out}"])
    assert content(run) == before
    assert (tmp_path / page).read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / page).parent.joinpath("figures/layer_curve.png").is_file()


def test_a_run_that_is_read_only_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: path != run)
    with pytest.raises(UsageError, match="run cannot be written: name a folder or a file .html for the page by out="):
        report.run([str(run)])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/sub cannot be written .*; name another by out="):
        report.run([str(run), f"out={tmp_path / 'file/sub'}"])


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "out="], ["a", "out=b", "out=c"], ["--figurs", "a"]])
def test_arguments_that_do_not_fit_are_reported(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="Expected one run folder and perhaps --figures and out="):
        report.run(arguments)
