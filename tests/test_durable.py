"""A file has its name only when it is whole."""

import errno
import os

import pytest

from rept.durable import digest, digest_file, publish
from rept.errors import UsageError


def test_a_published_file_is_what_was_given(tmp_path):
    publish(tmp_path / "file", b"first")
    publish(tmp_path / "file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"second"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    publish(tmp_path / "file", b"first")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UsageError, match="write 6 bytes to .*file, but got: Disk quota exceeded; make room"):
        publish(tmp_path / "file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match="No such file or directory"):
        publish(tmp_path / "nowhere" / "file", b"content")


def test_a_large_file_is_digested_in_pieces(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == digest(content)
    assert digest(content) != digest(content[:-1] + b"?")
