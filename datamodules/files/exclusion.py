"""Which training rows to leave out of training: given as numbers, or as a file that the report page wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path

from rept.errors import UsageError


def excluded_rows(exclude: str | Path | Collection[int] | None, rows: int) -> frozenset[int]:
    """Row numbers from 0, read from a JSON list or a CSV column ``row`` where ``exclude`` is a path.

    Raises:
        UsageError: no such file, no list of whole numbers in it, or a number that is no row of the data.
    """
    if exclude is None:
        return frozenset()
    listed = _read(Path(exclude)) if isinstance(exclude, str | Path) else list(exclude)
    wrong = next((row for row in listed if type(row) is not int or not 0 <= row < rows), None)
    if wrong is not None:
        raise UsageError(f"Expected datamodule.exclude to list row numbers from 0 to {rows - 1}, but got {wrong!r}.")
    return frozenset(listed)


def _read(path: Path) -> list[object]:
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "it is no text")
        raise UsageError(f"datamodule.exclude={path} cannot be read: {reason}.") from None
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"datamodule.exclude={path} is no JSON: {error.msg} in line {error.lineno}.") from None
    lines = csv.DictReader(text.splitlines())
    if "row" not in (lines.fieldnames or []):
        found = ", ".join(lines.fieldnames or []) or "none"
        expected = "a JSON list of row numbers, or a CSV with a column row"
        raise UsageError(f"Expected {path} to be {expected}; columns found: {found}.")
    return [int(line["row"]) if (line["row"] or "").strip().isdecimal() else line["row"] for line in lines]
