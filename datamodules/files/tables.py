"""Arrow folders, Parquet files and hub data sets as memory-mapped tables of the `datasets` library."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rept.errors import UsageError
from rept.utils.digests import text_digest
from rept.utils.library_logging import silence

if TYPE_CHECKING:
    import datasets  # imported where a file is opened: it takes seconds, and most files are read without it

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_END_BYTES = 1 << 16  # bytes at either end of a Parquet file that determine the name of its cache


class Table:
    """Rows of a memory-mapped `datasets` table; images and audio are not decoded."""

    def __init__(self, data: datasets.Dataset) -> None:
        self._data = data.with_format("arrow")
        self.columns: list[str] = data.column_names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record: dict[str, Any] = self._data[row].to_pylist()[0]
        return record


def is_arrow_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder: a data set, with or without splits."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def arrow_folder(folder: Path, split: str) -> Table:
    """Opens a folder of `save_to_disk`. Raises UsageError if it is damaged or lacks the split."""
    with _quietly(f"{folder} cannot be read as an Arrow folder"):
        import datasets

        data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UsageError(f"Expected {folder} to have the split {split!r}; splits found: {', '.join(data)}.")
        data = data[split]
    return Table(data)


def parquet(path: Path) -> Table:
    """Opens a Parquet file by the library's cache of Arrow files.

    The cache's name depends on the file's size, time and ends, so a replaced file is never read from an old cache.
    Raises UsageError if it is no Parquet file.
    """
    state = path.stat()
    with path.open("rb") as file:
        head = file.read(_END_BYTES)
        file.seek(max(0, state.st_size - _END_BYTES))
        name = text_digest(str((state.st_size, state.st_mtime_ns)), head, file.read())
    with _quietly(f"{path} cannot be read as Parquet"):
        import datasets

        return Table(datasets.load_dataset("parquet", name, data_files=str(path), split="train"))


def is_hub_id(name: str) -> bool:
    """Whether a missing path may be a hub id: ``owner/name``, unless ``owner`` is an existing folder."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.exists()


def from_hub(name: str, split: str, setting: str) -> Table:
    """Opens a hub data set in the library's cache. Raises UsageError if the hub does not provide it."""
    repository, _, configuration = name.partition(":")
    with _quietly(f"{setting}={name} is neither a path nor a data set that the Hugging Face hub provides"):
        import datasets

        return Table(datasets.load_dataset(repository, configuration or None, split=split))


@contextmanager
def _quietly(problem: str) -> Iterator[None]:
    """Silences the `datasets` library and turns its errors into a UsageError of one sentence."""
    try:
        with silence("datasets", logging.ERROR):  # it also logs what it raises
            yield
    except Exception as error:  # any error of the format, file system or network below the library
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"{problem}: {reason}") from None
