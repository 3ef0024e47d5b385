"""Atomic and durable writes: a file has its name only once all of it is on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from rept.errors import UsageError
from rept.utils.ranks import own_rank


def read_user_text(path: str | Path, setting: str, expected: str) -> str:
    """Returns the UTF-8 text of the file that a user's ``setting`` names; raises UsageError if it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{setting}={path} cannot be read ({reason}); expected {expected}.") from None


def publish(path: Path, data: bytes | memoryview) -> None:
    """Writes a file atomically; raises as `atomic_stream` does."""
    with atomic_stream(path, what=f"{len(data):,} bytes to ") as stream:
        stream.write(data)


@contextmanager
def atomic_stream(path: Path, what: str = "") -> Iterator[BinaryIO]:
    """Yields a stream to a temporary file, which is renamed to ``path`` once its content is on the disk.

    A killed process may leave the temporary file, which the next attempt overwrites.

    Args:
        what: how much is written, for the message.

    Raises:
        UsageError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    with write_errors(path, what):
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def move_durably(source: Path, target: Path) -> None:
    """Renames a file so that its content and then its new name survive a power loss."""
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(source, target)
    sync_folder(target.parent)


@contextmanager
def write_errors(path: Path, what: str = "") -> Iterator[None]:
    """Raises UsageError where writing ``path`` fails on a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Expected to write {what}{path}, but got: {error.strerror or error}; "
            "free disk space or fix permissions, then give the same command again to resume."
        ) from error


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Raises UsageError where a folder cannot be made or written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be written ({error.strerror}); name another by out=.") from None


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents so that they survive a power loss; raises as `folder_errors` does."""
    with folder_errors(folder):
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for one in reversed(missing):
            sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Makes new names in the folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock_folder(folder: Path, leftovers: Sequence[str] = ()) -> Iterator[None]:
    """Locks a folder for one run; only rank 0 takes the lock. The operating system releases it when its process ends.

    Args:
        folder: made if it does not exist.
        leftovers: patterns of files of killed runs, which are removed.

    Raises:
        UsageError: another run holds the lock, or the folder cannot be written.
    """
    if own_rank():
        yield
        return
    lock = FileLock(folder / ".lock", blocking=False)
    make_folder(folder)
    with folder_errors(folder):
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(f"{folder} is in use by another run; wait for it, or name another by out=.") from None
    with lock:
        for pattern in leftovers:
            for path in folder.glob(pattern):
                path.unlink()
        yield
