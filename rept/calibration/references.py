"""The reference queries of a calibration: rows drawn from the training data, and clean queries of another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rept.config.schema import CalibrationConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.word_overlap import WordOverlap
from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.store.reader import AttributionStore
from rept.types import TEXT, Key
from rept.utils.console import say

SAME_TOPIC = 0.2  # word overlap from which on a row and a reference have the same topic

# Fingerprints that may differ between two runs whose signatures are compared; all others must be the same.
MAY_DIFFER = {"training data", "query data", "answers", "max_new_tokens", "tokens_per_batch", "window", "store dtype"}


@dataclass(frozen=True)
class References:
    """Reference queries, and the training rows that each is not compared with."""

    fields: Mapping[Key, Tensor]  # each (R D)
    excluded: Callable[[Tensor], Tensor]  # from row numbers (n): mask (n R)
    source: str  # for people to read

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))


def check_calibration(calibration: CalibrationConfig, comparable: bool, fields: Sequence[str]) -> None:
    """Raises UsageError if a setting is out of its range, or signatures of this kind cannot be calibrated.

    Args:
        comparable: of the run's extractor.
        fields: those that the run's scorer reads.
    """
    rate, count = calibration.rate, calibration.count
    if rate is not None and not 0 < rate < 1:
        raise UsageError(f"Expected calibration.rate to be above 0 and below 1, but got {rate}.")
    if count < 0:
        raise UsageError(f"Expected calibration.count to be at least 0, but got {count}.")
    if calibration.references is None and count == 0:
        raise UsageError("Expected calibration.count to be at least 1 where calibration.references names no run.")
    if calibration.references is not None:
        RunFolder(calibration.references).open_existing()
    if rate is not None and not (comparable and {*fields} - {TEXT}):
        raise UsageError(
            f"Scores of {', '.join(fields)} cannot be calibrated here: the signatures of training rows and of queries "
            "are made differently, or they are not directions. Leave calibration.rate=null, or choose another "
            "experiment or scorer."
        )


def load_references(
    calibration: CalibrationConfig,
    seed: int,
    folder: RunFolder,
    train: AttributionStore,
    datamodule: AttributionDataModule,
) -> References | None:
    """The references of a run; None if it is not calibrated. All ranks of the run call this, and share the reading.

    ``calibration.count`` training rows are drawn, and beside them the queries of the run ``calibration.references`` are
    used if it is given. Why both are needed is explained in docs/calibration.md.

    Raises:
        UsageError: the other run was made with another model or other settings.
    """
    if calibration.rate is None:
        return None
    other = calibration.references
    given = [] if other is None else [_queries_of(RunFolder(other), folder, train)]
    if calibration.count:
        given.append(_drawn_rows(train, datamodule, calibration.count, seed))
    return given[0] if len(given) == 1 else _joined(*given)


def _drawn_rows(train: AttributionStore, datamodule: AttributionDataModule, count: int, seed: int) -> References:
    """Training rows, each not compared with itself and the rows of the same topic."""

    def texts(rows: np.ndarray) -> list[str]:
        return [datamodule.text("train", row) for row in rows.tolist()]

    def excluded(row: Tensor) -> Tensor:
        return (overlap(texts(row.numpy())) >= SAME_TOPIC) | (row[:, None] == torch.from_numpy(rows))

    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(train.attributed, min(count, len(train.attributed)), replace=False))
    overlap = WordOverlap(texts(rows), texts(train.evenly_spaced()))
    fields = train.read(rows, train.keys, together=True)
    return References(fields, excluded, "training rows, each compared with rows of other topics")


def _queries_of(other: RunFolder, own: RunFolder, train: AttributionStore) -> References:
    """The queries of another run, compared with all rows."""
    made, expected = (folder.read_provenance().get("fingerprints", {}) for folder in (other, own))
    names = sorted((made.keys() | expected.keys()) - MAY_DIFFER)
    different = [name for name in names if made.get(name) != expected.get(name)]
    if different:
        raise UsageError(
            f"Expected the references in {other.path} to be traced as {own.path} was, but they differ in "
            f"{', '.join(different)}: trace them with the same model and settings."
        )
    if made.get("query data") == expected.get("query data"):
        say(
            f"The references in {other.path} are the queries of {own.path} themselves, and a query hardly stands out "
            "from itself: name a run with clean queries by calibration.references."
        )
    store = AttributionStore(other.store, "query")
    fields, count = store.read(store.attributed, train.keys), len(store.attributed)
    return References(fields, lambda row: torch.zeros(len(row), count, dtype=torch.bool), f"queries of {other.path}")


def _joined(one: References, other: References) -> References:
    return References(
        {key: torch.cat([block, other.fields[key]]) for key, block in one.fields.items()},
        lambda row: torch.cat([one.excluded(row), other.excluded(row)], dim=1),
        f"{one.source}; {other.source}",
    )
