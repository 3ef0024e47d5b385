"""The interface of data sets, and the plan that cuts their rows into batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from rept.data.behaviours import Behaviour
from rept.data.encoder import Encoded, Encoder, Targets, collate, sorted_batches
from rept.data.samples import Sample, SampleSource, samples_digest
from rept.distributed.partition import Partition
from rept.errors import UsageError
from rept.types import Batch, PreTrainedTokenizerBase, Side, Status


class AttributionDataModule(ABC):
    """Training and query rows, tokenized and cut into batches that do not depend on the number of ranks.

    Rows are taken in windows of ``window`` consecutive rows. In a window, the rows that can be attributed are sorted by
    (tokens, row) and cut into batches of at least one row and at most ``tokens_per_batch`` tokens, padding included.
    The other rows are set aside and travel with the window's first batch, which may be empty otherwise.
    Whole windows go to the ranks in turn and the last few are shared, see :mod:`rept.distributed.partition`: a rank
    tokenizes its own share of the rows and at most two more windows. So a batch is the same, bit for bit, on any number
    of ranks and after any resume, and only one window is in memory at a time.

    A subclass must define :meth:`source`; the other methods are optional.

    Args:
        max_length: maximum tokens of a sample.
        tokens_per_batch: maximum of rows x longest row of a batch. A batch that does not fit on the device is halved.
        window: consecutive rows that are sorted together. A larger window wastes less padding, but rows that are set
            aside are stored later.
        targets: the assistant turns of a conversation that are the response, "last" or "all"; see `Encoder`.
    """

    default_model: str | None = None  # path of the model that belongs to the data, if the configuration names none
    trained_on: Mapping[str, object] = {}  # settings, by name, of the data that this model was trained on
    encoder: Encoder  # set by attach()

    def __init__(
        self, max_length: int = 1024, tokens_per_batch: int = 2048, window: int = 512, targets: Targets = "last"
    ) -> None:
        if targets not in get_args(Targets):
            raise UsageError(f"Expected datamodule.targets to be last or all, but got {targets!r}.")
        self.targets = targets
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.window = window
        for name, least in (("max_length", 2), ("tokens_per_batch", 1), ("window", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"Expected datamodule.{name} to be a whole number >= {least}, but got {value!r}.")
        self.answers: dict[int, str] = {}  # by query row: the model's own response, for queries without one

    @abstractmethod
    def source(self, side: Side) -> SampleSource:
        """Returns the rows of one side."""

    @property
    def excluded(self) -> frozenset[int]:
        """Training rows that train.py leaves out; attribution covers them too."""
        return frozenset()

    def behaviours(self) -> Sequence[Behaviour]:
        """Returns the behaviours that train.py tests a trained model for."""
        return ()

    def published_measures(
        self, ranking: Callable[[int], tuple[np.ndarray, np.ndarray]], queries: Sequence[int]
    ) -> Mapping[str, float]:
        """Returns the measures of the data's own benchmark by name, which are added to those of every run.

        Args:
            ranking: the row numbers (N) and scores (N) for a query by its position in ``queries``, in any order.
            queries: the ranked queries, by their row in the query data.
        """
        return {}

    def paraphrases(self) -> Mapping[str, Sequence[Sample]]:
        """Returns, by behaviour, triggered prompts in other words: disguises that a repair is tested by."""
        return {}

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the tokenizer of the model. Raises UsageError if the encoder refuses it."""
        self.encoder = Encoder(tokenizer, self.max_length, self.targets)

    def sample(self, side: Side, row: int) -> Sample | Status:
        """Returns a row's sample; a query without a response gets the model's own answer as soon as it is known."""
        sample = self.source(side)[row]
        if side == "query" and isinstance(sample, Sample) and sample.response is None and row in self.answers:
            return replace(sample, response=self.answers[row])
        return sample

    def text(self, side: Side, row: int) -> str:
        """Returns a row's prompt and response in one text; an empty one for a row that cannot be read."""
        sample = self.sample(side, row)
        return "" if isinstance(sample, Status) else sample.text

    def encoded(self, side: Side, row: int) -> Encoded | Status:
        """Returns a row's tokens, or the reason why it has none."""
        return self.encoder.encode([self.sample(side, row)])[0]

    def status(self, side: Side, row: int) -> Status:
        """Returns the status that a row's text leads to; the model may still give non-finite values."""
        encoded = self.encoded(side, row)
        if isinstance(encoded, Status):
            return encoded
        return Status.CUT if encoded.cut else Status.ATTRIBUTED

    def digest(self, side: Side) -> str:
        """Returns a fingerprint of all that signatures of a side depend on: every row, without labels and spans."""
        return samples_digest(self.source(side)) + (" all turns" if self.targets == "all" else "")

    def sample_lengths(self, side: Side, n: int = 256) -> np.ndarray:
        """Returns the tokens of at most ``n`` evenly spaced rows, 0 for those set aside; for estimates.

        A query whose answer is not known yet counts with its prompt alone.
        """
        rows = np.unique(np.linspace(0, len(self.source(side)) - 1, n).astype(np.int64))
        return np.array([self._length(self.sample(side, int(row))) for row in rows], dtype=np.int64)

    def _length(self, sample: Sample | Status) -> int:
        if isinstance(sample, Status):
            return 0
        if sample.response is None:
            prompt = self.encoder.prompt(sample)
            return 0 if isinstance(prompt, Status) else len(prompt)
        encoded = self.encoder(sample)
        return 0 if isinstance(encoded, Status) else len(encoded.input_ids)

    def loader(
        self,
        side: Side,
        *,
        rank: int = 0,
        world_size: int = 1,
        done: np.ndarray | None = None,
        in_step: Callable[[bool], bool] | None = None,
    ) -> Iterator[Batch]:
        """Yields one rank's batches, in the plan's order.

        Args:
            done: (rows,) bool, True for rows that are already stored; rows after its end are not. Their batches are
                left out, and windows that consist of them are not read.
            in_step: for ranks that must take equally many steps: passes on whether this rank has a batch, and returns
                whether any rank has one. Then no batch is empty: a rank without rows gets ``Batch.filler``.

        Raises:
            UsageError: while iterating, if only part of a batch is stored: the store was made by another plan.
        """
        batches = self._plan(side, rank, world_size, done)
        return _in_step(batches, side, in_step) if in_step else batches

    def batches(self, side: Side, rows: Sequence[int]) -> Iterator[Batch]:
        """Yields batches of chosen rows by the same rules: windows in the given order, each sorted and cut."""
        for start in range(0, len(rows), self.window):
            yield from self._cut(side, rows[start : start + self.window])

    def _plan(self, side: Side, rank: int, world_size: int, done: np.ndarray | None) -> Iterator[Batch]:
        total = len(self.source(side))
        stored = np.zeros(total, dtype=bool)
        if done is not None:
            stored[: len(done)] = done
        windows = Partition(-(-total // self.window), world_size)
        for number, start in enumerate(range(0, total, self.window)):
            rows = range(start, min(start + self.window, total))
            if stored[rows.start : rows.stop].all() or not windows.overlaps(number, rank):
                continue
            batches = self._cut(side, rows)
            for i, batch in enumerate(batches):
                if windows.owner(number, i, len(batches)) == rank and not _is_stored(batch, stored):
                    yield batch

    def _cut(self, side: Side, rows: Sequence[int]) -> list[Batch]:
        """Returns the batches of one window; its set-aside rows travel with the first."""
        samples = ((int(row), self.sample(side, int(row))) for row in rows)
        return sorted_batches(self.encoder, samples, side, self.tokens_per_batch)


def _in_step(batches: Iterator[Batch], side: Side, any_has: Callable[[bool], bool]) -> Iterator[Batch]:
    """Yields the batches, none of them empty, and then fillers while other ranks have more."""
    for batch in batches:
        any_has(True)
        yield batch if len(batch) else _filler(side, batch.set_aside)
    while any_has(False):
        yield _filler(side)


def _filler(side: Side, set_aside: tuple[tuple[int, Status], ...] = ()) -> Batch:
    """Returns the smallest batch that a model can run on, two tokens; only its set-aside rows are kept."""
    least = Encoded([0, 0], 1, [False, True], special=[], pieces=[], text="", cut=False, marked=[])
    return replace(collate([(0, Sample((), ""), least)], side, 0, set_aside), filler=True)


def _is_stored(batch: Batch, done: np.ndarray) -> bool:
    """Whether all rows of a batch are stored. Raises UsageError if only some are."""
    rows = batch.row.tolist() + [row for row, _ in batch.set_aside]
    stored = done[rows]
    if stored.any() and not stored.all():
        raise UsageError(
            f"Expected rows {min(rows)} to {max(rows)} to be stored together or not at all, but only some are. The "
            "store was made with other data, max_length, tokens_per_batch or window; choose another out."
        )
    return bool(stored.all())
