"""The batch plan: which rows go together, in which order, on which rank.

Holds SampleSource, AttributionDataModule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from rept.data.behaviours import Behaviour
from rept.data.encoder import Encoded, Encoder, collate
from rept.data.fingerprint import of_samples
from rept.data.padding import cut
from rept.data.samples import Sample
from rept.distributed.partition import Deal
from rept.errors import UsageError
from rept.types import IGNORE, Batch, Side, Status


class SampleSource(Protocol):
    """The rows of one side, read when asked for; the data may be larger than memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Sample | Status: ...  # a Status where the row holds no sample


class AttributionDataModule(LightningDataModule, ABC):
    """Training and query rows, tokenized and batched by one plan that knows nothing of ranks.

    The plan: rows are taken in windows of ``window`` consecutive rows. In a window the rows that can be attributed are
    sorted by (tokens, row) and cut into batches, each of as many rows as fit in ``tokens_per_batch`` tokens, padding
    included, and of one row at least. The other rows ride on the window's first batch, which may hold nothing else.
    Whole windows go to the ranks in turn, and the last few are shared, see `rept.distributed.partition`: a rank tokenizes its own
    share of the rows, and two windows more at most. So a batch is the same, bit for bit, on any number of ranks and
    after any resume, and only one window is in memory at a time.

    Args:
        max_length: most tokens of a sample.
        tokens_per_batch: rows x longest row of a batch, at most. A batch that does not fit on the device is halved.
        window: consecutive rows that are sorted together: more waste fewer padding tokens, and delay set-aside rows.
    """

    default_model: str | None = None  # path of the model that goes with embedded data
    trained_on: Mapping[str, Any] = {}  # the settings, by name, of the data that this model was trained on
    encoder: Encoder  # made by attach()
    excluded: frozenset[int] = frozenset()  # training rows that train.py leaves out; attribution covers them too

    def __init__(self, max_length: int = 1024, tokens_per_batch: int = 2048, window: int = 512) -> None:
        super().__init__()
        for name, value, least in (
            ("max_length", max_length, 2),
            ("tokens_per_batch", tokens_per_batch, 1),
            ("window", window, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"Expected datamodule.{name} to be a whole number >= {least}, but got {value!r}.")
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.window = window
        self.answers: dict[int, str] = {}  # query row -> the model's own response, for queries without one

    @abstractmethod
    def source(self, side: Side) -> SampleSource:
        """The rows of one side."""

    def behaviours(self) -> Sequence[Behaviour]:
        """What train.py asks a trained model to see what it has learned; nothing, unless a data set knows how."""
        return ()

    def attach(self, tokenizer: Any) -> None:
        """Takes the tokenizer of the model. Raises UsageError where the encoder refuses it."""
        self.encoder = Encoder(tokenizer, self.max_length)

    def sample(self, side: Side, row: int) -> Sample | Status:
        """A row's sample; for a query without a response, with the model's own answer once there is one."""
        sample = self.source(side)[row]
        if side == "query" and isinstance(sample, Sample) and sample.response is None and row in self.answers:
            return replace(sample, response=self.answers[row])
        return sample

    def encoded(self, side: Side, row: int) -> Encoded | Status:
        """A row's tokens, or why it has none."""
        return self.encoder.encode([self.sample(side, row)])[0]

    def status(self, side: Side, row: int) -> Status:
        """What will become of a row, as far as its text tells."""
        encoded = self.encoded(side, row)
        if isinstance(encoded, Status):
            return encoded
        return Status.CUT if encoded.cut else Status.ATTRIBUTED

    def digest(self, side: Side) -> str:
        """A fingerprint of every row of a side."""
        return of_samples(self.source(side))

    def sample_lengths(self, side: Side, n: int = 256) -> np.ndarray:
        """Tokens of at most ``n`` rows, evenly spaced over the data; 0 for those set aside. For estimates.

        A query whose answer is not known yet counts with its prompt alone.
        """
        rows = np.unique(np.linspace(0, len(self.source(side)) - 1, n).astype(np.int64))
        samples = [self.sample(side, int(row)) for row in rows]
        lengths = np.zeros(len(rows), dtype=np.int64)
        for i, (sample, encoded) in enumerate(zip(samples, self.encoder.encode(samples), strict=True)):
            if isinstance(encoded, Encoded):
                lengths[i] = len(encoded.input_ids)
            elif isinstance(sample, Sample) and sample.response is None:
                prompt = self.encoder.prompt(sample)
                lengths[i] = 0 if isinstance(prompt, Status) else len(prompt)
        return lengths

    def loader(
        self,
        side: Side,
        *,
        rank: int = 0,
        world_size: int = 1,
        done: np.ndarray | None = None,
        in_step: Callable[[bool], bool] | None = None,
    ) -> DataLoader:
        """One rank's batches, whole, in the plan's order.

        Args:
            done: (rows,) bool, True for rows that are stored already. Batches of such rows are left out, and windows of
                such rows are not even read.
            in_step: for ranks that must take equally many steps: tells the others whether this rank has a batch, and
                returns whether any of them has. Every batch then holds something to run: where this rank has no row,
                what is marked as ``Batch.company``.

        Raises:
            UsageError: while iterating, where a batch is done in part: the store was made by another plan.
        """

        def make() -> Iterator[Batch]:
            batches = self._plan(side, rank, world_size, done)
            return _in_step(batches, side, in_step) if in_step else batches

        return DataLoader(_Stream(make), batch_size=None, num_workers=0)

    def batches(self, side: Side, rows: Sequence[int]) -> Iterator[Batch]:
        """Chosen rows by the same rules: windows of the rows in the given order, sorted and cut as above."""
        for start in range(0, len(rows), self.window):
            yield from self._cut(side, rows[start : start + self.window])

    def _plan(self, side: Side, rank: int, world_size: int, done: np.ndarray | None) -> Iterator[Batch]:
        total = len(self.source(side))
        windows = Deal(-(-total // self.window), world_size)
        for number, start in enumerate(range(0, total, self.window)):
            rows = range(start, min(start + self.window, total))
            stored = done is not None and done[rows.start : rows.stop].all()
            if stored or not windows.concerns(number, rank):
                continue
            batches = self._cut(side, rows)
            for i, batch in enumerate(batches):
                if windows.holder(number, i, len(batches)) == rank and not _stored(batch, done):
                    yield batch

    def _cut(self, side: Side, rows: Sequence[int]) -> list[Batch]:
        """The batches of one window; its set-aside rows ride on the first."""
        samples = [self.sample(side, int(row)) for row in rows]
        encoded = self.encoder.encode(samples)
        together = list(zip(map(int, rows), samples, encoded, strict=True))
        set_aside = [(row, status) for row, _, status in together if isinstance(status, Status)]
        ordered = [entry for entry in together if isinstance(entry[2], Encoded)]
        ordered.sort(key=lambda entry: (len(entry[2].input_ids), entry[0]))
        groups = cut([len(encoded.input_ids) for _, _, encoded in ordered], self.tokens_per_batch)
        pad = self.encoder.pad_id
        return [collate(ordered[group], side, pad, () if i else set_aside) for i, group in enumerate(groups)]


class _Stream(IterableDataset):
    """An iterable over what ``make`` yields, anew each time."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return self._make()


def _in_step(batches: Iterator[Batch], side: Side, any_has: Callable[[bool], bool]) -> Iterator[Batch]:
    """The batches, each something to run, and then company for the ranks that have more of them."""
    for batch in batches:
        any_has(True)
        yield batch if len(batch) else _company(side, batch.set_aside)
    while any_has(False):
        yield _company(side)


def _company(side: Side, set_aside: tuple[tuple[int, Status], ...] = ()) -> Batch:
    """The least that a model can be run on, two tokens; nobody keeps what comes of it, but rows set aside may ride."""
    return Batch(
        input_ids=torch.zeros(1, 2, dtype=torch.int64),
        labels=torch.tensor([[IGNORE, 0]]),
        prompt_end=torch.tensor([0]),
        length=torch.tensor([2]),
        row=torch.tensor([0]),
        cut=torch.tensor([False]),
        side=side,
        text=(("", ""),),
        set_aside=set_aside,
        company=True,
    )


def _stored(batch: Batch, done: np.ndarray | None) -> bool:
    """Whether all rows of a batch are done. Raises UsageError where only some are."""
    if done is None:
        return False
    rows = batch.row.tolist() + [row for row, _ in batch.set_aside]
    stored = [bool(done[row]) for row in rows]
    if any(stored) and not all(stored):
        raise UsageError(
            f"Expected rows {min(rows)} to {max(rows)} to be stored together or not at all, but only some are: the "
            f"store was made with another max_length, tokens_per_batch or window, or from other data; use another out."
        )
    return all(stored)
