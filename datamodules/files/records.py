"""Records by number, from files that may be larger than memory.

Holds Records, JsonLines, JsonArray, CsvRows, open_records.

JSON Lines and CSV are read in place, by an index of where each record starts (8 bytes a record). No type is inferred:
a row of the wrong type is that row's own trouble. All of a file is checked when it is opened: a broken line is told at
once, not hours later.
"""

from __future__ import annotations

import csv
import hashlib
import json
import mmap
from array import array
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from datamodules.files import tables
from rept.errors import UsageError
from rept.utils.progress import progress

ACCEPTED = (
    "a file .jsonl, .json, .csv, .tsv or .parquet, an Arrow folder written by datasets' save_to_disk, "
    "or the id of a data set on the Hugging Face hub (owner/name, or owner/name:configuration)"
)
_NEWS = 1 << 12  # records between two words to the progress bar

Record = dict[str, Any]


class Records(Protocol):
    """Records by number, each read when asked for."""

    columns: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Record | None: ...  # None: there is no record of these columns

    def digest(self) -> str: ...  # of the content, which it changes with


class JsonLines:
    """One JSON object a line; blank lines do not count. Its columns are the keys of all objects.

    Raises:
        UsageError: a line that is no JSON, or no UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._bytes = _memory_map(path)
        self._starts = array("q")
        columns: dict[str, None] = {}
        with progress(f"Reading {path.name}") as advance:
            for number, start, line in _lines(self._bytes):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode())
                except (ValueError, RecursionError) as error:
                    fault = f"{path}, line {number}: {_fault(error)}"
                    raise UsageError(f"{fault}; expected one JSON object a line.") from None
                if isinstance(record, dict):
                    columns.update(dict.fromkeys(record))
                self._starts.append(start)
                if len(self._starts) % _NEWS == 0:
                    advance(_NEWS)
        self.columns = list(columns)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> Record | None:
        start = self._starts[row]
        end = self._bytes.find(b"\n", start)
        record = json.loads(self._bytes[start : end if end >= 0 else len(self._bytes)].decode())
        return record if isinstance(record, dict) else None

    def digest(self) -> str:
        return hashlib.sha256(self._bytes).hexdigest()


class JsonArray(list[Record | None]):
    """A file that is one JSON array of objects, held in memory whole.

    Raises:
        UsageError: no JSON, or no UTF-8.
    """

    def __init__(self, path: Path) -> None:
        try:
            records = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UsageError(f"{path}{line}: {_fault(error)}; expected a JSON array of objects.") from None
        super().__init__(record if isinstance(record, dict) else None for record in records)
        self.columns = list(dict.fromkeys(key for record in self if record for key in record))

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(list(self)).encode()).hexdigest()


class CsvRows:
    """A header line, then rows; quoted fields may hold line breaks. Every value is a string, an empty one None.

    Raises:
        UsageError: a quote that never closes, text that is no UTF-8, or a column name that stands twice.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        csv.field_size_limit(2**31 - 1)  # the module's default refuses fields above 128 KiB
        self._bytes = _memory_map(path)
        self._delimiter = delimiter
        self._starts = array("q")
        rows = csv.reader(_text(self._bytes), delimiter=delimiter, strict=True)
        try:
            self._header = next(rows, [])
            self._starts.append(self._bytes.tell())
            with progress(f"Reading {path.name}") as advance:
                for row in rows:
                    if len(self._starts) == 1 and len(row) == len(self._header) + 1:
                        self._header = ["", *self._header]  # an index column without even a comma in the header
                    if row:
                        self._starts.append(self._bytes.tell())
                    else:  # a blank line is no row: what was thought to start there starts behind it
                        self._starts[-1] = self._bytes.tell()
                    if len(self._starts) % _NEWS == 0:
                        advance(_NEWS)
        except (csv.Error, UnicodeDecodeError) as error:
            line = rows.line_num + isinstance(error, UnicodeDecodeError)  # the reader never got that one
            raise UsageError(f"{path}, line {line}: {_fault(error)}; expected CSV in UTF-8.") from None
        self.columns = [name for name in self._header if name]
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise UsageError(f"{path} has more than one column named {', '.join(twice)}; rename all but one.")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> Record | None:
        row = range(len(self))[row]
        text = self._bytes[self._starts[row] : self._starts[row + 1]].decode()
        values = next(csv.reader(StringIO(text, newline="\n"), delimiter=self._delimiter, strict=True))
        if len(values) != len(self._header):
            return None
        return {name: value or None for name, value in zip(self._header, values, strict=True) if name}

    def digest(self) -> str:
        return hashlib.sha256(self._bytes).hexdigest()


def open_records(path: str, split: str, setting: str) -> Records:
    """The records of a file, a folder or a hub data set.

    Args:
        split: of an Arrow folder or a hub data set that has several.
        setting: the name of the setting that gave the path, for messages.

    Raises:
        UsageError: nothing there, nothing in it, or not in the form that its name promises.
    """
    try:
        records = _open(path, split, setting)
    except OSError as error:
        raise UsageError(f"{setting}={path} cannot be read: {error.strerror}.") from None
    if not len(records):
        raise UsageError(f"{setting}={path} has no rows; expected at least one.")
    return records


def _open(path: str, split: str, setting: str) -> Records:
    where = Path(path).expanduser()
    kind = where.suffix.lower()
    if not where.exists():
        if tables.is_hub_id(path):
            return tables.from_hub(path, split, setting)
        raise UsageError(f"{setting}={path} does not exist; expected {ACCEPTED}.")
    if where.is_dir():
        if tables.is_arrow_folder(where):
            return tables.arrow_folder(where, split)
        raise UsageError(f"{setting}={path} is a folder that holds no data set; expected {ACCEPTED}.")
    if where.stat().st_size == 0:
        raise UsageError(f"{setting}={path} is empty; expected at least one row.")
    if kind == ".json" and _is_array(where):
        return JsonArray(where)
    if kind in (".json", ".jsonl", ".ndjson"):
        return JsonLines(where)
    if kind in (".csv", ".tsv"):
        return CsvRows(where, "," if kind == ".csv" else "\t")
    if kind == ".parquet":
        return tables.parquet(where)
    raise UsageError(f"Expected {setting} to be {ACCEPTED}, but got the file {path}.")


def _is_array(path: Path) -> bool:
    mapped = _memory_map(path)
    first = next((line for _, _, line in _lines(mapped) if line.strip()), b"")
    return first.lstrip().startswith(b"[")


def _memory_map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[:3] == b"\xef\xbb\xbf":  # a byte order mark
        mapped.seek(3)
    return mapped


def _lines(mapped: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """Line number from 1, first byte, and the line."""
    number = 0
    while line := mapped.readline():
        number += 1
        yield number, mapped.tell() - len(line), line


def _text(mapped: mmap.mmap) -> Iterator[str]:
    for _, _, line in _lines(mapped):
        yield line.decode()


def _fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error.msg} at character {error.pos + 1})"
    return f"broken ({str(error).partition(chr(10))[0]})"
