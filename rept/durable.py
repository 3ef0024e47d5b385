"""Files to rely on: whole if they are there under their name, and known by the digest of their content."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

from rept.errors import UsageError


def digest(data: bytes | memoryview | mmap.mmap) -> str:
    """xxh3 with 128 bits, in hex.

    It guards against accidents, not forgers, and must keep up with the disk: at 9 GB/s it does, where SHA-256 without
    processor support gives 0.2 and would take longer than the ranking itself.
    """
    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path) -> str:
    """The digest of a file of any size; raises UsageError if it cannot be read."""
    made = xxhash.xxh3_128()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(2**20):
                made.update(piece)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    return made.hexdigest()


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
