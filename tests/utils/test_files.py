"""A file has its name only when it is whole."""

import errno
import os

import pytest

from rept.errors import UsageError
from rept.utils.digests import content_digest, file_digest
from rept.utils.files import make_folder, publish


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
    with pytest.raises(UsageError, match="write 6 bytes to .*file, but got: Disk quota exceeded; free disk space"):
        publish(tmp_path / "file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, to_disk):
    """Or a power loss could leave the name without the content, or take a finished shard away."""
    publish(tmp_path / "file", b"content")
    assert to_disk == [str(tmp_path / ".file.partial"), "rename", str(tmp_path)]


def test_new_folders_outlast_a_power_loss(tmp_path, to_disk):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert to_disk == [str(tmp_path), str(tmp_path / "a")]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/sub cannot be written \(Not a directory\); name another by out="):
        make_folder(tmp_path / "file" / "sub")


def test_a_folder_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(UsageError, match="No such file or directory"):
        publish(tmp_path / "nowhere" / "file", b"content")


def test_a_large_file_is_digested_in_pieces(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == content_digest(content)
    assert content_digest(content) != content_digest(content[:-1] + b"?")
