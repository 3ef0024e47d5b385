"""Training rows, tokenized once, and their batches, which are the same after any resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.data.padding import padded
from rept.errors import UsageError
from rept.types import Batch, Status
from rept.utils.progress import progress
from rept.utils.text import counted

_ROWS_AT_ONCE = 512  # rows that are tokenized by one call
_BATCHES_SORTED_TOGETHER = 32


class TrainingRows:
    """The tokens of all rows that can be trained on, concatenated in memory (5 bytes a token).

    Raises UsageError if there is no such row.
    """

    def __init__(self, datamodule: AttributionDataModule) -> None:
        self.pad_id = datamodule.encoder.pad_id
        self.set_aside: Counter[str] = Counter()  # rows that cannot be trained on, by reason
        tokens, response, found = [], [], []
        for row, encoded in _encoded(datamodule):
            if isinstance(encoded, Status):
                self.set_aside[encoded.reason] += 1
            else:
                tokens.append(np.array(encoded.input_ids, dtype=np.int32))
                response.append(np.array(encoded.response))
                found.append((row, encoded.cut, encoded.prompt_length, len(encoded.input_ids)))
        if not found:
            raise UsageError(f"No training row can be trained on: {counted(self.set_aside) or 'all are excluded'}.")
        self.row, self.cut, self.prompt_length, self.length = map(np.array, zip(*found, strict=True))
        self._tokens, self._response = np.concatenate(tokens), np.concatenate(response)
        self._start = np.cumsum(self.length) - self.length

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Batch:
        """Returns the batch of the rows at positions ``chosen`` (n), right padded to its longest row."""
        chosen = np.asarray(chosen, dtype=np.int64)
        places = [slice(self._start[n], self._start[n] + self.length[n]) for n in chosen]
        rows = [(torch.from_numpy(self._tokens[one]), torch.from_numpy(self._response[one])) for one in places]
        input_ids, labels = padded(rows, self.pad_id)
        return Batch(
            input_ids=input_ids,
            labels=labels,
            prompt_end=torch.from_numpy(self.prompt_length[chosen] - 1),
            length=torch.from_numpy(self.length[chosen]),
            row=torch.from_numpy(self.row[chosen]),
            cut=torch.from_numpy(self.cut[chosen]),
            side="train",
            text=(),
        )


class TrainingBatches:
    """The batches of one rank, epoch after epoch, from a position that can be saved and restored.

    In each epoch the rows are shuffled, divided into windows of 32 batches, sorted by length within a window, cut into
    batches of ``batch_size``, and the batches are shuffled: batches of similar lengths need little padding. The order
    is a pure function of seed and epoch. Ranks take batches in turn; the last turn is filled up with the
    first batches of the epoch.
    """

    def __init__(self, rows: TrainingRows, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drawn = 0  # batches drawn since the beginning of training

    def __len__(self) -> int:
        """Batches of one rank in one epoch."""
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        """From the current position to the end of its epoch."""
        epoch, position = divmod(self.drawn, len(self))
        plan = self.epoch(epoch)
        for step in range(position, len(self)):
            self.drawn += 1
            yield self.rows.batch(plan[(step * self.world_size + self.rank) % len(plan)])

    def epoch(self, number: int) -> list[np.ndarray]:
        """Returns the batches of all ranks in one epoch, as positions in the rows."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.rows))
        window = self.batch_size * _BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), window):
            together = order[start : start + window]
            together = together[np.argsort(self.rows.length[together], kind="stable")]
            batches += [together[i : i + self.batch_size] for i in range(0, len(together), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def _encoded(datamodule: AttributionDataModule) -> Iterator[tuple[int, Encoded | Status]]:
    """Each training row that is not excluded, with its number."""
    source = datamodule.source("train")
    rows = [row for row in range(len(source)) if row not in datamodule.excluded]
    with progress("Tokenizing", total=len(rows)) as advance:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            numbers = rows[start : start + _ROWS_AT_ONCE]
            yield from zip(numbers, datamodule.encoder.encode([source[row] for row in numbers]), strict=True)
            advance(len(numbers))
