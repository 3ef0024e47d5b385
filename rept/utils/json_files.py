"""JSON and JSON Lines files: written atomically, and damage reported in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rept.errors import UsageError
from rept.utils.files import atomic_stream, publish
from rept.utils.ranks import own_rank


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file; ranks other than 0 write nothing here and below."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    if own_rank() == 0:
        write_lines(path, rows)


def write_text(path: Path, text: str) -> None:
    if own_rank() == 0:
        publish(path, _encoded(text))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file as `write_jsonl` does, but on any rank."""
    with atomic_stream(path) as stream:
        for row in rows:
            stream.write(_encoded(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Raises UsageError: the file is damaged."""
    with _parsing(path):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


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
            "command again to recompute it."
        ) from error


def _encoded(text: str) -> bytes:
    """UTF-8, in which lone surrogates, which JSON input may carry, are written as escapes."""
    return text.encode("utf-8", "backslashreplace")
