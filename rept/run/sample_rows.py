"""The rows of the training data that a layer strategy, or an extractor that learns, looks at beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np

from rept.errors import UsageError
from rept.model.placement import input_device
from rept.run.job import Job
from rept.signatures.layer_strategy import LayerChoice, reads_labels
from rept.types import Batch, Status


def choose_layers(job: Job) -> tuple[LayerChoice, list[int]]:
    """The layer strategy's choice, and the training rows that it looked at."""
    strategy = job.strategy
    rows = probe_rows(job, strategy.probe_rows, labelled=reads_labels(strategy))
    batches = list(training_batches(job, rows))
    if reads_labels(strategy):
        return strategy(job.model, batches, {row: _label(job, row) for row in rows}), rows
    return strategy(job.model, batches), rows


def training_batches(job: Job, rows: Sequence[int]) -> Iterator[Batch]:
    """Chosen training rows, where the model takes its tokens."""
    device = input_device(job.model)
    return (batch.to(device) for batch in job.datamodule.batches("train", rows))


def probe_rows(job: Job, wanted: int, labelled: bool = False) -> list[int]:
    """Row numbers drawn with the seed from the training rows that can be attributed, in ascending order.

    Args:
        labelled: rows that were planted and clean ones by turns, as far as there are both; else whatever comes.
    """
    if not wanted:
        return []
    order = np.random.default_rng(job.config.seed).permutation(len(job.datamodule.source("train"))).tolist()
    if labelled:
        order = _by_turns(job, order)
    found: list[int] = []
    for row in order:
        if job.datamodule.status("train", row).attributed:
            found.append(row)
        if len(found) == wanted:
            break
    if not found:
        raise UsageError("No training row can be attributed: each has an empty or too long prompt, or no response.")
    return sorted(found)


def _by_turns(job: Job, order: Sequence[int]) -> list[int]:
    kinds: tuple[list[int], list[int]] = ([], [])  # planted, clean
    for row in order:
        kinds[_label(job, row) is None].append(row)
    return [row for row in chain.from_iterable(zip_longest(*kinds)) if row is not None]


def _label(job: Job, row: int) -> str | None:
    """The label of a training row; None for one that is clean, or has none."""
    sample = job.datamodule.source("train")[row]
    return None if isinstance(sample, Status) or sample.label == "clean" else sample.label
