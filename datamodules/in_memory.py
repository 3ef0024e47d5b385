"""Samples given in Python, as by `rept.trace`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from datamodules.files.columns import find_columns
from datamodules.files.records import RecordList
from datamodules.instructions import InstructionRows
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Targets
from rept.errors import UsageError
from rept.types import Side


class InMemoryData(AttributionDataModule):
    """Training and query rows as dictionaries, with the keys that `InstructionData` finds as columns.

    Args:
        train: the training rows.
        queries: the queries; the model itself answers one without a response.
        max_length, tokens_per_batch, window, targets: as in :class:`AttributionDataModule`.

    Raises:
        UsageError: a list is empty, or its rows lack a prompt or (training rows) a response.
    """

    def __init__(
        self,
        train: Sequence[Mapping[str, Any]],
        queries: Sequence[Mapping[str, Any]],
        max_length: int = 1024,
        tokens_per_batch: int = 2048,
        window: int = 512,
        targets: Targets = "last",
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window, targets=targets)
        self._sources: dict[Side, InstructionRows] = {
            "train": _rows(train, "train", "`train`"),
            "query": _rows(queries, "query", "`queries`"),
        }

    def source(self, side: Side) -> InstructionRows:
        return self._sources[side]


def _rows(rows: Sequence[Mapping[str, Any]], side: Side, where: str) -> InstructionRows:
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sized):
        raise UsageError(f"Expected {where} to be a list of samples, but got a {type(rows).__name__}.")
    if not len(rows):
        raise UsageError(f"Expected {where} to be a list of samples, but it is empty.")
    records = RecordList(rows)
    return InstructionRows(records, find_columns(records.columns, {}, side, where))
