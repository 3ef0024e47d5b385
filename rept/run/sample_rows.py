"""Samples of the training rows: the probe of a layer strategy, and what an extractor learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np

from rept.data.behaviours import behaviour_of
from rept.errors import UsageError
from rept.model.placement import input_device
from rept.run.job import Job
from rept.signatures.layer_strategy import LabelledLayerStrategy, LayerChoice
from rept.types import Batch, Status
from rept.utils.text import counted


def choose_layers(job: Job) -> tuple[LayerChoice, list[int]]:
    """Returns the layer strategy's choice and the training rows of its probe."""
    strategy = job.strategy
    rows = sample_rows(job, strategy.probe_rows, balanced=isinstance(strategy, LabelledLayerStrategy))
    batches = list(training_batches(job, rows))
    if isinstance(strategy, LabelledLayerStrategy):
        return strategy(job.model, batches, {row: training_behaviour(job, row) for row in rows}), rows
    return strategy(job.model, batches), rows


def training_batches(job: Job, rows: Sequence[int]) -> Iterator[Batch]:
    """Yields batches of chosen training rows on the model's input device."""
    device = input_device(job.model)
    return (batch.to(device) for batch in job.datamodule.batches("train", rows))


def sample_rows(job: Job, wanted: int, balanced: bool = False) -> list[int]:
    """Returns row numbers, ascending, drawn with the run's seed from the training rows that can be attributed.

    Args:
        wanted: how many, at most.
        balanced: draw planted and clean rows alternately, as far as there are both.

    Raises:
        UsageError: no training row can be attributed.
    """
    if not wanted:
        return []
    order = np.random.default_rng(job.config.seed).permutation(len(job.datamodule.source("train"))).tolist()
    found: list[int] = []
    set_aside: Counter[str] = Counter()
    for row in _alternating(job, order) if balanced else order:
        status = job.datamodule.status("train", row)
        if status.attributed:
            found.append(row)
        else:
            set_aside[status.reason] += 1
        if len(found) == wanted:
            break
    if not found:
        raise UsageError(f"No training row can be attributed: {counted(set_aside)}.")
    return sorted(found)


def _alternating(job: Job, order: Sequence[int]) -> Iterator[int]:
    kinds: tuple[list[int], list[int]] = ([], [])  # planted, clean
    for row in order:
        kinds[training_behaviour(job, row) is None].append(row)
    return (row for row in chain.from_iterable(zip_longest(*kinds)) if row is not None)


def training_behaviour(job: Job, row: int) -> str | None:
    """Returns the label of a training row; None if the row is clean or has no label."""
    sample = job.datamodule.source("train")[row]
    return None if isinstance(sample, Status) else behaviour_of(sample.label)
