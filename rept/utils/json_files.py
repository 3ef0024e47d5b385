"""JSON and JSON Lines files, written atomically and read with one sentence where they are damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from rept.errors import UsageError
from rept.utils.files import beside


@rank_zero_only
def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@rank_zero_only
def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_lines(path, rows)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """As `write_jsonl`, on any rank."""
    with _beside(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises UsageError: the file is damaged."""
    with _parsing(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Raises UsageError: the file is damaged."""
    with _parsing(path), path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # of JSON, and of UTF-8
        raise UsageError(
            f"Expected {path} to be as it was written, but it is damaged ({error}); delete it and give the same "
            "command again to make it anew."
        ) from error


@rank_zero_only
def write_text(path: Path, text: str) -> None:
    with _beside(path) as stream:
        stream.write(text)


def _beside(path: Path) -> AbstractContextManager[IO[str]]:
    """`rept.utils.files.beside` for text. Lone surrogates, which JSON input may carry, have no UTF-8: kept as escapes."""
    return beside(path, "w", encoding="utf-8", errors="backslashreplace")
