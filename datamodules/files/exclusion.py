"""Training rows to leave out of training: numbers, or a file of the report page or of `python -m rept exclude`."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from rept.errors import UsageError
from rept.utils.files import read_user_text


def excluded_rows(exclude: str | Path | Collection[int] | None, rows: int) -> frozenset[int]:
    """Returns row numbers from 0; a path is read as JSON or as CSV with a column ``row``.

    JSON is a list of row numbers, or an object with such a list as ``rows``. Raises UsageError if there is no file
    with such a list, or a number is not that of a row.
    """
    listed: Iterable[object] = _read(exclude) if isinstance(exclude, str | Path) else exclude or ()
    found = set()
    for row in listed:
        if type(row) is not int or not 0 <= row < rows:
            raise UsageError(f"Expected datamodule.exclude to list row numbers from 0 to {rows - 1}, but got {row!r}.")
        found.add(row)
    return frozenset(found)


def _read(path: str | Path) -> list[object]:
    expected = "a JSON list of row numbers, or CSV with a column row"
    text = read_user_text(path, "datamodule.exclude", expected)
    if text.lstrip().startswith(("[", "{")):
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"datamodule.exclude={path} is invalid JSON: {error.msg} in line {error.lineno}."
            ) from None
        listed = content.get("rows") if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise UsageError(f"Expected {path} to have a list of row numbers as rows, but got {listed!r}.")
        return listed
    lines = csv.DictReader(text.splitlines())
    if "row" not in (lines.fieldnames or []):
        found = ", ".join(lines.fieldnames or []) or "none"
        raise UsageError(f"Expected {path} to be {expected}; columns found: {found}.")
    return [int(line["row"]) if (line["row"] or "").strip().isdecimal() else line["row"] for line in lines]
