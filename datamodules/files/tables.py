"""Arrow folders, Parquet files and hub data: tables of the `datasets` library, memory-mapped.

Holds Table, is_arrow_folder, arrow_folder, parquet, is_hub_id, from_hub.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from rept.errors import UsageError
from rept.utils.digests import text_digest
from rept.utils.library_logging import silence

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_ENDS = 1 << 16  # bytes at either end of a Parquet file that its cache's name depends on
_AT_ONCE = 1000  # rows that are digested together


class Table:
    """Rows of a `datasets` table, memory-mapped; columns that hold pictures or sound are not decoded."""

    def __init__(self, data: datasets.Dataset) -> None:
        self._data = data.with_format("arrow")
        self.columns = data.column_names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._data[row].to_pylist()[0]

    def digest(self) -> str:
        made = hashlib.sha256()
        for rows in self._data.iter(batch_size=_AT_ONCE):
            for batch in rows.combine_chunks().to_batches():
                made.update(batch.serialize())
        return made.hexdigest()


def is_arrow_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it: one data set, or one with splits."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def arrow_folder(folder: Path, split: str) -> Table:
    """What `save_to_disk` wrote. Raises UsageError where it is damaged, or has no such split."""
    with _quietly(f"{folder} cannot be read as an Arrow folder"):
        data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UsageError(f"{folder} has the splits {', '.join(data)}, but {split!r} was asked for.")
        data = data[split]
    return Table(data)


def parquet(path: Path) -> Table:
    """A Parquet file, by way of the library's cache of Arrow files.

    The cache's name holds the file's size, time and ends, so what a replaced file held is never read. Raises UsageError
    where it is no Parquet file.
    """
    state = path.stat()
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, state.st_size - _ENDS))
        name = text_digest(str((state.st_size, state.st_mtime_ns)), head, file.read())
    with _quietly(f"{path} cannot be read as Parquet"):
        return Table(datasets.load_dataset("parquet", name, data_files=str(path), split="train"))


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path may be the hub's: ``owner/name``, unless ``owner`` is a folder that is here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.exists()


def from_hub(name: str, split: str, setting: str) -> Table:
    """A data set of the hub, in the library's cache. Raises UsageError where the hub does not give it out."""
    repository, _, configuration = name.partition(":")
    with _quietly(f"{setting}={name} is neither a path nor a data set that the Hugging Face hub gives out"):
        return Table(datasets.load_dataset(repository, configuration or None, split=split))


@contextmanager
def _quietly(complaint: str) -> Iterator[None]:
    """Runs the `datasets` library without its own talk; its errors become the user's, in one sentence."""
    try:
        with silence("datasets", logging.ERROR):  # it logs what it raises, too
            yield
    except Exception as error:  # the library lets through those of every format, file system and network below it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"{complaint}: {reason}") from None
