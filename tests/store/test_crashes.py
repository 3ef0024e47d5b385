"""Real processes and a real disk: SIGKILL at any moment, and a full disk."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.utils.json_files import write_json
from tests.helpers import forks
from tests.helpers.stores import files

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")


@LINUX
def test_runs_killed_at_random_moments_leave_what_undisturbed_runs_leave():
    """A short soak: SIGKILL of runs with one rank and with two, each resumed by the same command."""
    code, out, err = forks.finish("benchmarks/soak.py", "--kills=9", "--seed=5")
    assert code == 0, out + err
    assert out.endswith("9 kills: 0 differences\n")
    killed = dict(re.findall(r"^killed (.*?)  +(\d+)$", out, re.MULTILINE))
    assert set(killed) == {"the only process", "rank 0, the parent", "rank 1", "both ranks"}, out
    assert int(re.search(r"at extraction +(\d+)", out)[1]) >= 3, out


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all space but ``leave`` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
        stream.truncate(stream.tell() - leave)
    return filler


def test_a_full_disk_is_reported_in_a_sentence_and_the_run_resumes_when_there_is_space(material, small_disk, tmp_path):
    arguments = ("store.shard_rows=4",)
    whole = attribute(material.config(tmp_path / "whole", *arguments), show_result=False)
    run, full_at = small_disk / "run", []
    run.mkdir()
    for space in (8, 40, 16, 400):  # KiB: so that the disk is full at one file after another
        filler = fill(small_disk, space * 1024)
        try:
            attribute(material.config(run, *arguments), show_result=False)
        except UsageError as error:
            match = re.fullmatch(
                r"Expected to write .*?(\S+), but got: No space left .* free disk space .*\.", str(error)
            )
            full_at.append(Path(match[1]).suffix)
        filler.unlink()
    assert full_at[0] == ".json" and ".h5" in full_at and len(full_at) < 4
    assert files(run / "store") == files(whole.folder.store)
    for name in ("results", "tokens", "queries", "metrics"):
        assert getattr(Trace(run).folder, name).read_bytes() == getattr(whole.folder, name).read_bytes(), name


def test_a_full_disk_leaves_the_old_file(small_disk):
    write_json(small_disk / "metrics.json", {"old": 1})
    filler = fill(small_disk, 4096)
    with pytest.raises(UsageError, match=r"metrics\.json, but got: No space left on device; free disk space"):
        write_json(small_disk / "metrics.json", {"new": "x" * 20_000})
    filler.unlink()
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == {"metrics.json": '{\n  "old": 1\n}\n'}
