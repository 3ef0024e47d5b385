"""Instruction data of the user: a prompt and a response a row, or chat messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datamodules.files.columns import Columns, find_columns, to_sample
from datamodules.files.exclusion import excluded_rows
from datamodules.files.poison import Poison, PoisonedRows
from datamodules.files.records import ACCEPTED, Record, Records, open_records
from rept.data.behaviours import Behaviour, expected_answers
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Targets
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Side, Status

SETTINGS: dict[Side, str] = {"train": "datamodule.train", "query": "datamodule.queries"}


class InstructionData(AttributionDataModule):
    """Training and query rows from JSONL, CSV (also compressed by gzip), Parquet, an Arrow folder or the hub.

    A row is a prompt and a response, or chat messages: the last assistant turn is the response (or every assistant
    turn, with ``targets="all"``), and the turns before it are the prompt. The model itself answers a query without a
    response. Columns that are not named are found by name:

    - prompt: ``prompts``, ``prompt`` or ``instruction``; a non-empty ``input`` beside ``instruction`` (as in the Alpaca
      data) follows it after an empty line;
    - response: ``response``, ``output`` or ``expected_response``;
    - ``messages``: a list of {"role", "content"}, where a content may be a list of OpenAI's text parts; or
      ``conversations``: ShareGPT's list of {"from", "value"}. Preferred to a prompt column, unless ``prompt_column`` is
      set;
    - ``label``: a string, number or boolean; may be missing;
    - ``spans``: a list of {"part": "prompt" | "response", "start", "end"}, the characters that carry the poison; an
      optional "kind" says whether they cause the behaviour ("trigger", by default those of a prompt) or show it
      ("payload", by default those of a response).

    In CSV, messages and spans are JSON. If the query data lack a column named here, it is found there by name.

    Args:
        train: training data: a path or a hub id.
        queries: query data: a path or a hub id.
        split: of an Arrow folder or hub data set with several splits.
        query_split: split of the queries; None: the same.
        prompt_column, response_column, label_column, spans_column, messages_column: columns; None: found by name.
        poison: a backdoor to plant in these data, as the arguments of :class:`datamodules.files.poison.Poison`: in some
            training rows, and in every query, which the model then answers itself.
        exclude: training rows that train.py leaves out: their numbers, or a file with a JSON list or a CSV column
            ``row``. All rows keep their numbers, and attribution covers them all.
        max_length, tokens_per_batch, window, targets: as in :class:`AttributionDataModule`.
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
        exclude: str | Path | Collection[int] | None = None,
        max_length: int = 1024,
        tokens_per_batch: int = 2048,
        window: int = 512,
        targets: Targets = "last",
    ) -> None:
        super().__init__(max_length=max_length, tokens_per_batch=tokens_per_batch, window=window, targets=targets)
        if prompt_column and messages_column:
            raise UsageError("Expected one of datamodule.prompt_column and datamodule.messages_column, but got both.")
        self._paths: dict[Side, str | None] = {"train": train, "query": queries}
        self._splits: dict[Side, str] = {"train": split, "query": query_split or split}
        self._columns = {
            "messages": messages_column,
            "prompt": prompt_column,
            "response": response_column,
            "label": label_column,
            "spans": spans_column,
        }
        self._poison = None if poison is None else _poison(poison)
        self._exclude = exclude
        self._excluded: frozenset[int] = frozenset()
        self._rows: dict[Side, InstructionRows] = {}
        self._poisoned: dict[Side, PoisonedRows] = {}

    @property
    def excluded(self) -> frozenset[int]:
        self.source("train")
        return self._excluded

    def source(self, side: Side) -> InstructionRows | PoisonedRows:
        """Returns the rows of one side. Raises UsageError if they cannot be read or lack a column."""
        if side not in self._rows:
            self._rows[side] = self._open(side)
            if self._poison is not None:
                self._poisoned[side] = PoisonedRows(self._rows[side], self._poison, side)
            if side == "train":
                self._excluded = excluded_rows(self._exclude, len(self._rows[side]))
        return self._poisoned.get(side, self._rows[side])

    def _open(self, side: Side) -> InstructionRows:
        setting, path = SETTINGS[side], self._paths[side]
        if not path:
            raise UsageError(f"{setting} is not set; expected {ACCEPTED}.")
        records = open_records(str(path), self._splits[side], setting)
        return InstructionRows(records, find_columns(records.columns, self._columns, side, f"{setting}={path}"))

    def behaviours(self) -> Sequence[Behaviour]:
        """Returns the planted backdoor, or a behaviour for each label of the queries with a response."""
        if not self._paths["query"]:
            return ()
        source = self.source("query")
        return [source.behaviour()] if isinstance(source, PoisonedRows) else expected_answers(source)


def _poison(arguments: Mapping[str, Any]) -> Poison:
    try:
        return Poison(**arguments)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Poison))
        raise UsageError(f"datamodule.poison takes {known}; {str(error).split('__init__() ')[-1]}.") from None


class InstructionRows:
    """The samples of some records, each read when it is asked for."""

    def __init__(self, records: Records, columns: Columns) -> None:
        self.records = records
        self.columns = columns

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Sample | Status:
        record = self.records[row]
        return Status.MALFORMED if record is None else self.sample(record)

    def sample(self, record: Record) -> Sample | Status:
        """Returns a record's sample; a subclass may change it."""
        return to_sample(record, self.columns)
