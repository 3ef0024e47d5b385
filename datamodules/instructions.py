"""Instruction data of the user's own: a prompt and a response a row, or chat messages.

Holds InstructionData, InstructionRows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from datamodules.files.columns import Columns, find_columns, to_sample
from datamodules.files.exclusion import excluded_rows
from datamodules.files.records import ACCEPTED, Records, open_records
from datamodules.toy.planting import Poison, PoisonedRows
from rept.data.behaviours import Behaviour, expected_openings
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Side, Status
from rept.utils.digests import text_digest


class InstructionData(AttributionDataModule):
    """Training and query rows from JSONL, CSV, Parquet, an Arrow folder or the hub.

    A row is a prompt and a response, or chat messages: the last assistant turn is the response, and all before it the
    prompt. A query without a response is answered by the model itself. Columns that are not named are found by name:

    - prompt: ``prompts``, ``prompt`` or ``instruction``; an ``input`` beside ``instruction`` (as in the Alpaca data) is
      put after it, an empty line between, where it is not empty;
    - response: ``response``, ``output`` or ``expected_response``;
    - ``messages``: a list of {"role", "content"}; read before a prompt column, unless ``prompt_column`` is set;
    - ``label``: a string, number or truth value; may be missing;
    - ``spans``: a list of {"part": "prompt" | "response", "start", "end"}, the characters that carry the poison.

    In CSV, messages and spans are JSON. A column named here that the query data lack is looked for there by name.

    Args:
        train: training data: a path or a hub id.
        queries: query data: a path or a hub id.
        split: of an Arrow folder or hub data set with several.
        query_split: that of the queries; None: the same.
        prompt_column, response_column, label_column, spans_column, messages_column: columns; None: found by name.
        poison: a backdoor to plant in these data, as the arguments of :class:`datamodules.toy.planting.Poison`: in some
            training rows, and in every query, which the model then answers itself.
        exclude: training rows that train.py leaves out: their numbers, or a file that holds them, a JSON list or a CSV
            with a column ``row``. All rows keep their numbers, and attribution covers them all.
        max_length, tokens_per_batch, window: as in :class:`AttributionDataModule`.
    """

    def __init__(
        self,
        train: str | None = None,
        queries: str | None = None,
        split: str = "train",
        query_split: str | None = None,
        prompt_column: str | None = None,
        response_column: str | None = None,
        label_column: str | None = None,
        spans_column: str | None = None,
        messages_column: str | None = None,
        poison: Mapping[str, Any] | None = None,
        exclude: str | Path | Sequence[int] | None = None,
        max_length: int = 1024,
        tokens_per_batch: int | Literal["auto"] = 2048,
        window: int = 512,
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window)
        if prompt_column and messages_column:
            raise UsageError("Expected one of datamodule.prompt_column and datamodule.messages_column, but got both.")
        self._paths = {"train": train, "query": queries}
        self._splits = {"train": split, "query": query_split or split}
        self._columns = {
            "messages": messages_column,
            "prompt": prompt_column,
            "response": response_column,
            "label": label_column,
            "spans": spans_column,
        }
        self._poison = None if poison is None else _poison(poison)
        self._exclude = exclude
        self._sources: dict[Side, InstructionRows] = {}
        self._poisoned: dict[Side, PoisonedRows] = {}

    @property
    def excluded(self) -> frozenset[int]:
        self.source("train")
        return self._excluded

    def source(self, side: Side) -> InstructionRows | PoisonedRows:
        """The rows of one side. Raises UsageError where they cannot be read, or lack a column."""
        if self._poison is None:
            return self._given(side)
        if side not in self._poisoned:
            self._poisoned[side] = PoisonedRows(self._given(side), self._poison, side)
        return self._poisoned[side]

    def _given(self, side: Side) -> InstructionRows:
        if side not in self._sources:
            setting = {"train": "datamodule.train", "query": "datamodule.queries"}[side]
            path = self._paths[side]
            if not path:
                raise UsageError(f"{setting} is not set; expected {ACCEPTED}.")
            records = self._records(str(path), self._splits[side], setting)
            columns = find_columns(records.columns, self._columns, side, f"{setting}={path}")
            self._sources[side] = InstructionRows(records, columns)
            if side == "train":
                self._excluded = excluded_rows(self._exclude, len(records))
        return self._sources[side]

    def _records(self, path: str, split: str, setting: str) -> Records:
        """The records of a side, for a subclass to change on the way."""
        return open_records(path, split, setting)

    def digest(self, side: Side) -> str:
        """A fingerprint of the data's content and of the columns that are read: faster than one of every sample."""
        source = self._given(side)
        poison = () if self._poison is None else (str(self._poison),)
        return f"{len(source)} rows {text_digest(source.records.digest(), str(source.columns), *poison)}"

    def behaviours(self) -> Sequence[Behaviour]:
        """The planted backdoor, or one behaviour for each label of the queries that bring their response: an answer
        shows it that begins like that."""
        if not self._paths["query"]:
            return ()
        source = self.source("query")
        return [source.behaviour()] if isinstance(source, PoisonedRows) else expected_openings(source)


def _poison(arguments: Mapping[str, Any]) -> Poison:
    try:
        return Poison(**arguments)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Poison))
        raise UsageError(f"datamodule.poison takes {known}; {str(error).split('__init__() ')[-1]}.") from None


class InstructionRows:
    """The samples of a file, each read when asked for."""

    def __init__(self, records: Records, columns: Columns) -> None:
        self.records = records
        self.columns = columns

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Sample | Status:
        record = self.records[row]
        return Status.MALFORMED if record is None else to_sample(record, self.columns)
