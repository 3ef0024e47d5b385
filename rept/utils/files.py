"""Files to rely on: whole if they are there under their name, and known by the digest of their content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rept.errors import UsageError


def publish(path: Path, data: bytes | memoryview) -> None:
    """Writes a file that has its name only once all of it is on the disk.

    Raises:
        UsageError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    with beside(path, "wb", what=f"{len(data):,} bytes to ") as stream:
        stream.write(data)


@contextmanager
def beside(path: Path, mode: str, what: str = "", **encoding: str) -> Iterator[IO[Any]]:
    """A stream whose file takes the name ``path`` only when all of it is on the disk.

    What a killed run leaves behind has a name that the next one writes over.

    Args:
        mode, encoding: as for `Path.open`.
        what: how much is written, for `not_written`.

    Raises:
        UsageError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, **encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(not_written(path, error, what)) from error
        raise


def not_written(path: Path, error: OSError, what: str = "") -> str:
    """One sentence for a disk that is full or a folder that cannot be written."""
    return (
        f"Expected to write {what}{path}, but got: {error.strerror or error}; "
        "make room or mend this, and give the same command again to go on."
    )


def make_folder(folder: Path) -> None:
    """A folder, with those above it, whose being there outlasts a power loss; raises OSError as `Path.mkdir` does."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder outlast a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
