"""Samples given in Python: what `rept.trace` makes of the lists that it is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datamodules.files.columns import find_columns
from datamodules.instructions import InstructionRows
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.types import Side


class InMemoryData(AttributionDataModule):
    """Training and query rows as dictionaries, with the keys that `InstructionData` finds as columns.

    Args:
        train: the training rows.
        queries: the queries; one without a response is answered by the model itself.
        max_length, tokens_per_batch, window: as in :class:`AttributionDataModule`.

    Raises:
        UsageError: a list is empty, or its rows lack a prompt or (in training rows) a response.
    """

    def __init__(
        self,
        train: Sequence[Mapping[str, Any]],
        queries: Sequence[Mapping[str, Any]],
        max_length: int = 1024,
        tokens_per_batch: int | Literal["auto"] = 2048,
        window: int = 512,
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window)
        self._sources = {"train": _rows(train, "train"), "query": _rows(queries, "query")}

    def source(self, side: Side) -> InstructionRows:
        return self._sources[side]


class _Listed:
    """A list of dictionaries as records; what is no dictionary holds no sample."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        mappings = (row for row in rows if isinstance(row, Mapping))
        self.columns = list(dict.fromkeys(str(key) for row in mappings for key in row))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        record = self._rows[row]
        return dict(record) if isinstance(record, Mapping) else None


def _rows(rows: Sequence[Mapping[str, Any]], side: Side) -> InstructionRows:
    where = {"train": "train", "query": "queries"}[side]
    if not len(rows):
        raise UsageError(f"Expected `{where}` to be a list of samples, but it is empty.")
    records = _Listed(rows)
    named = dict.fromkeys(("messages", "prompt", "response", "label", "spans"))
    return InstructionRows(records, find_columns(records.columns, named, side, f"`{where}`"))
