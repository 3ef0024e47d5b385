"""One run per folder; files are complete or absent; leftovers of killed runs are removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.utils.json_files import read_json, read_jsonl, write_json, write_jsonl
from tests.helpers.commands import ROOT, environment
from tests.helpers.runs import write_run


def test_a_second_run_in_the_same_folder_is_refused(material, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.lock(), pytest.raises(UsageError, match=r"run is in use by another run; wait for it, or .* out=\."):
        attribute(material.config(folder.path))
    assert {path.name for path in folder.path.iterdir()} <= {".lock"}
    with folder.lock():  # it is free again
        pass


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path):
    code = f"""
        from rept.results.run_folder import RunFolder
        with RunFolder({str(tmp_path)!r}).lock():
            print("held", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="in use by another run"), RunFolder(tmp_path).lock():
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with RunFolder(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    expected = r"folder .* cannot be written \(Not a directory\); name another by out="
    with pytest.raises(UsageError, match=expected), RunFolder(tmp_path / "file" / "run").lock():
        pass


@pytest.mark.parametrize("name", ["provenance", "queries", "layers"])
def test_a_damaged_file_of_a_run_is_named(material, tmp_path, name):
    config = material.config(tmp_path / "run", "tokens.hits=0")
    attribute(config, show_result=False)
    path = getattr(RunFolder(tmp_path / "run"), name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=rf"{path.name} to be as it was written, but it is damaged .*; delete it and"):
        attribute(config, show_result=False)
    path.unlink()
    attribute(config, show_result=False)
    assert read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)


def test_lines_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, to_disk):
    write_jsonl(tmp_path / "lines.jsonl", [{"a": 1}])
    assert to_disk == [str(tmp_path / ".lines.jsonl.partial"), "rename", str(tmp_path)]


def test_leftovers_of_killed_runs_are_removed_by_the_next_run(tmp_path):
    for name in (".results.jsonl.partial", ".scores-1-of-2", "results.jsonl"):
        (tmp_path / name).touch()
    with RunFolder(tmp_path).lock():
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "results.jsonl"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_keeps_its_old_content(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "metrics.json"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], full)
    with pytest.raises(UsageError, match=r"write .*metrics\.json, but got: No space left on device; free disk space"):
        write_json(path, {"new": 2})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"metrics.json": before}


def test_a_file_whose_lines_raise_keeps_its_old_content(tmp_path):
    def lines():
        yield {"row": 1}
        raise KeyboardInterrupt

    path = tmp_path / "results.jsonl"
    write_jsonl(path, [{"row": 0}])
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, lines())
    assert read_jsonl(path) == [{"row": 0}] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("schema", [1, 3])
def test_a_folder_of_another_schema_is_refused(tmp_path, schema):
    folder = RunFolder(write_run(tmp_path / "run"))
    write_json(folder.provenance, read_json(folder.provenance) | {"schema": schema})
    expected = rf"run to be a run folder of schema 2, but got schema {schema}, .*Use that version, or run again .* out="
    for read in (folder.open_existing, folder.read_provenance, lambda: Trace(folder.path)):
        with pytest.raises(UsageError, match=expected):
            read()
