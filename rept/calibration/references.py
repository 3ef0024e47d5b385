"""The reference queries of a calibration: drawn from the training rows, beside the clean queries of another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.config.schema import CalibrationConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.word_overlap import WordOverlap
from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.signatures.extractor import Extractor
from rept.store.reader import AttributionStore
from rept.types import Key, Status

SAME_TOPIC = 0.2  # share of telling words from which on a row speaks of what a reference speaks of

# What two runs may differ in whose signatures are compared; all other fingerprints must be the same.
MAY_DIFFER = {"training data", "query data", "answers", "max_new_tokens", "tokens_per_batch", "window", "store dtype"}


@dataclass(frozen=True)
class References:
    """Reference queries, and which training rows each is not compared with.

    ``left_out`` is told row numbers (n) and gives a mask (n R).
    """

    fields: Mapping[Key, Tensor]  # each (R D)
    left_out: Callable[[Tensor], Tensor]
    source: str  # as a person reads it

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def of(self, keys: Mapping[Key, Any]) -> Mapping[Key, Tensor]:
        """The fields that other queries have."""
        return {key: self.fields[key] for key in keys}


def check_calibration(calibration: CalibrationConfig, extractor: Extractor | type[Extractor]) -> None:
    """Raises UsageError if a setting is out of its range, or signatures of this kind cannot be calibrated.

    Args:
        extractor: the extractor of the run, or its class.
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
    if rate is not None and not extractor.comparable:
        name = extractor.__name__ if isinstance(extractor, type) else type(extractor).__name__
        raise UsageError(
            f"The signatures of {name} cannot be calibrated: those of training rows and of queries are made "
            "differently, or they are not directions. Leave calibration.rate=null, or choose another experiment."
        )


def load_references(
    calibration: CalibrationConfig,
    seed: int,
    folder: RunFolder,
    train: AttributionStore,
    datamodule: AttributionDataModule,
) -> References | None:
    """The references that a run asks for; None where it is not calibrated.

    Clean queries alone would not do for a query that resembles many training rows in something no clean query has, such
    as a trigger of any kind; rows drawn from the training data alone are no fresh queries. So where there are clean
    queries, they are references beside the drawn rows, unless ``calibration.count=0`` says that none are drawn: drawn
    rows that are culprits themselves take the power from all p-values below their share.

    Raises:
        UsageError: the other run was made by another model or in another way.
    """
    if calibration.rate is None:
        return None
    other = calibration.references
    given = [] if other is None else [_of_run(RunFolder(other), folder, train)]
    if calibration.count:
        given.append(drawn(train, datamodule, calibration.count, seed))
    return given[0] if len(given) == 1 else _together(*given)


def drawn(train: AttributionStore, datamodule: AttributionDataModule, count: int, seed: int) -> References:
    """Training rows, each left out of its own comparison along with all rows that speak of the same thing.

    Args:
        train: the store of the training rows.
        datamodule: an `AttributionDataModule`, for their texts.
        count: references to draw, at most.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(train.attributed, min(count, len(train.attributed)), replace=False))
    texts = _Texts(datamodule)
    overlap = WordOverlap(texts(rows), texts(train.evenly_spaced()))
    own = torch.from_numpy(rows)

    def left_out(row: Tensor) -> Tensor:
        return (overlap(texts(row.numpy())) >= SAME_TOPIC) | (row[:, None] == own)

    return References(train.read(rows, train.keys), left_out, "training rows, each without its like")


def _of_run(other: RunFolder, own: RunFolder, train: AttributionStore) -> References:
    made, asked = (folder.read_provenance().get("fingerprints", {}) for folder in (other, own))
    names = sorted((made.keys() | asked.keys()) - MAY_DIFFER)
    different = [name for name in names if made.get(name) != asked.get(name)]
    if different:
        raise UsageError(
            f"Expected the references in {other.path} to be traced as {own.path} was, but they differ in "
            f"{', '.join(different)}: trace them with the same model and settings."
        )
    store = AttributionStore(other.store, "query")
    fields = store.read(store.attributed, train.keys)
    count = len(store.attributed)
    return References(fields, lambda row: torch.zeros(len(row), count, dtype=torch.bool), f"queries of {other.path}")


def _together(one: References, other: References) -> References:
    return References(
        {key: torch.cat([block, other.fields[key]]) for key, block in one.fields.items()},
        lambda row: torch.cat([one.left_out(row), other.left_out(row)], dim=1),
        f"{one.source}; {other.source}",
    )


class _Texts:
    """Prompt and response of training rows; nothing for those that hold no sample."""

    def __init__(self, datamodule: AttributionDataModule) -> None:
        self._sample = datamodule.sample

    def __call__(self, rows: np.ndarray) -> list[str]:
        samples = [self._sample("train", row) for row in rows.tolist()]
        return ["" if isinstance(one, Status) else f"{one.prompt}\n{one.response}" for one in samples]
