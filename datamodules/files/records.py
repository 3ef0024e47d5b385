"""Records by number, from files that may be larger than memory.

JSON Lines and CSV are read in place, by an index of where each record starts (8 bytes a record); a file compressed by
gzip is decompressed to a temporary file first. No type is inferred: a row of the wrong type is invalid by itself. The
whole file is checked when it is opened, so a damaged line is reported at once and not hours later.
"""

from __future__ import annotations

import csv
import gzip
import json
import mmap
import shutil
import zlib
from array import array
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

from datamodules.files import tables
from rept.errors import UsageError
from rept.utils.progress import progress

ACCEPTED = (
    "a file .jsonl, .json, .csv, .tsv (also .gz) or .parquet, an Arrow folder written by datasets' save_to_disk, "
    "or the id of a data set on the Hugging Face hub (owner/name, or owner/name:configuration)"
)
_LINES_PER_UPDATE = 1 << 12  # of the progress bar

Record = dict[str, Any]


class Records(Protocol):
    """Records by number, each read when it is asked for."""

    @property
    def columns(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Record | None: ...  # None: the row does not have these columns


class RecordList:
    """Records in memory; a row that is not a dictionary is None."""

    def __init__(self, rows: Sequence[object]) -> None:
        self._rows = rows
        self.columns = list(dict.fromkeys(str(key) for row in rows if isinstance(row, Mapping) for key in row))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Record | None:
        record = self._rows[row]
        return dict(record) if isinstance(record, Mapping) else None


class _IndexedFile:
    """A memory-mapped file and where each record starts in it, which the subclass finds out."""

    def __init__(self, path: Path) -> None:
        self._bytes = _memory_map(path)
        self._starts = array("q")  # and, as the last entry, where the last record ends

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _text(self, row: int) -> str:
        row = range(len(self))[row]
        return self._bytes[self._starts[row] : self._starts[row + 1]].decode()


class JsonLines(_IndexedFile):
    """One JSON object a line; blank lines do not count. The columns are the keys of all objects.

    Raises UsageError if a line is invalid JSON or UTF-8.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        columns: dict[str, None] = {}
        for number, start, line in _lines(self._bytes, path.name):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                problem = f"{path}, line {number}: {_problem(error)}"
                raise UsageError(f"{problem}; expected one JSON object a line.") from None
            if isinstance(record, dict):
                columns.update(dict.fromkeys(record))
            self._starts.append(start)
        self._starts.append(len(self._bytes))
        self.columns = list(columns)

    def __getitem__(self, row: int) -> Record | None:
        record = json.loads(self._text(row).strip())
        return record if isinstance(record, dict) else None


class CsvRows(_IndexedFile):
    """A header line, then rows; quoted fields may contain line breaks. Every value is a string, an empty one None.

    Raises UsageError for a quote that is never closed, invalid UTF-8, or a repeated column name.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        csv.field_size_limit(2**31 - 1)  # the module's default refuses fields above 128 KiB
        super().__init__(path)
        self._delimiter = delimiter
        with closing(_lines(self._bytes, path.name)) as lines:
            rows = csv.reader((line.decode() for *_, line in lines), delimiter=delimiter, strict=True)
            try:
                self._header = next(rows, [])
                self._starts.append(self._bytes.tell())
                for row in rows:
                    if len(self._starts) == 1 and len(row) == len(self._header) + 1:
                        self._header = ["", *self._header]  # an index column that the header leaves out
                    if row:
                        self._starts.append(self._bytes.tell())
                    else:  # a blank line is no row: the next row starts after it
                        self._starts[-1] = self._bytes.tell()
            except (csv.Error, UnicodeDecodeError) as error:
                line = rows.line_num + isinstance(error, UnicodeDecodeError)  # which the reader has not counted
                raise UsageError(f"{path}, line {line}: {_problem(error)}; expected CSV in UTF-8.") from None
        self.columns = [name for name in self._header if name]
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise UsageError(f"{path} has more than one column named {', '.join(twice)}; rename all but one.")

    def __getitem__(self, row: int) -> Record | None:
        values = next(csv.reader(StringIO(self._text(row), newline="\n"), delimiter=self._delimiter, strict=True))
        if len(values) != len(self._header):
            return None
        return {name: value or None for name, value in zip(self._header, values, strict=True) if name}


def open_records(path: str, split: str, setting: str) -> Records:
    """Opens the records of a file, a folder or a hub data set.

    Args:
        split: of an Arrow folder or a hub data set with several splits.
        setting: name of the setting that gave the path, for messages.

    Raises:
        UsageError: the path is missing, empty, or not in the format of its name.
    """
    try:
        records = _open(path, split, setting)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UsageError(f"{setting}={path} cannot be read: the gzip file is damaged or cut off.") from None
    except OSError as error:
        raise UsageError(f"{setting}={path} cannot be read: {error.strerror}.") from None
    if not len(records):
        raise UsageError(f"{setting}={path} has no rows; expected at least one.")
    return records


def _open(path: str, split: str, setting: str) -> Records:
    where = Path(path).expanduser()
    kind = (where.with_suffix("") if _is_gzip(where) else where).suffix.lower()
    if not where.exists():
        if tables.is_hub_id(path):
            return tables.from_hub(path, split, setting)
        raise UsageError(f"{setting}={path} does not exist; expected {ACCEPTED}.")
    if where.is_dir():
        if tables.is_arrow_folder(where):
            return tables.arrow_folder(where, split)
        raise UsageError(f"{setting}={path} is a folder without a data set; expected {ACCEPTED}.")
    if where.stat().st_size == 0:
        raise UsageError(f"{setting}={path} is empty; expected at least one row.")
    if kind == ".json" and _is_json_array(where):
        return _json_array(where)
    if kind in (".json", ".jsonl", ".ndjson"):
        return JsonLines(where)
    if kind in (".csv", ".tsv"):
        return CsvRows(where, "," if kind == ".csv" else "\t")
    if kind == ".parquet" and not _is_gzip(where):
        return tables.parquet(where)
    raise UsageError(f"Expected {setting} to be {ACCEPTED}, but got the file {path}.")


def _is_json_array(path: Path) -> bool:
    first = next(filter(bytes.strip, iter(_memory_map(path).readline, b"")), b"")
    return first.lstrip().startswith(b"[")


def _json_array(path: Path) -> RecordList:
    """Reads a file that is one JSON array into memory."""
    try:
        return RecordList(json.loads(_memory_map(path).read().decode()))
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{path}{line}: {_problem(error)}; expected a JSON array of objects.") from None


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _memory_map(path: Path) -> mmap.mmap:
    """Maps a file, or a temporary one with its decompressed content, positioned after a byte order mark."""
    with ExitStack() as opened:
        file: IO[bytes] = opened.enter_context(path.open("rb"))
        if _is_gzip(path):
            compressed = opened.enter_context(gzip.open(file))
            file = opened.enter_context(TemporaryFile())
            shutil.copyfileobj(compressed, file)
            file.flush()
            if not file.tell():
                raise UsageError(f"{path} is empty; expected at least one row.")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[:3] == b"\xef\xbb\xbf":  # a byte order mark
        mapped.seek(3)
    return mapped


def _lines(mapped: mmap.mmap, name: str) -> Generator[tuple[int, int, bytes], None, None]:
    """Yields each line of a file with its number from 1 and the position of its first byte; shows the progress."""
    with progress(f"Reading {name}", unit="lines") as advance:
        for number, line in enumerate(iter(mapped.readline, b""), 1):
            yield number, mapped.tell() - len(line), line
            if number % _LINES_PER_UPDATE == 0:
                advance(_LINES_PER_UPDATE)


def _problem(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON ({error.msg} at character {error.pos + 1})"
    return f"invalid ({str(error).partition(chr(10))[0]})"
