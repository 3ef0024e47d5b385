"""Ranking: the training rows that score highest for each query, found in one pass over a store.

Memory is that of a block of rows, whatever their number. Equal scores rank by row number, across blocks and processes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.errors import UsageError
from rept.ranking.topk import Hits, TopK
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.files import not_written

Pair = tuple[str, int]  # site and layer
Sink = Callable[[Tensor, Tensor], None]  # takes the row numbers (n) and scores (n Q) of a block
Watch = Callable[[Tensor, Mapping[Key, Tensor]], None]  # takes the row numbers (n) and fields (n D) of a block


@dataclass(frozen=True)
class Ranking:
    """What `rank` finds."""

    best: Hits
    lowest: Hits  # k is 0 unless bottom_k was asked for


def rank(
    train: AttributionStore,
    queries: Mapping[Key, Tensor],
    scorer: Any,
    *,
    top_k: int = 100,
    bottom_k: int = 0,
    device: torch.device | str = "cpu",
    part: tuple[int, int] = (0, 1),
    rows_per_block: int = 4096,
    on_block: Callable[[int], None] | None = None,
    sinks: Sequence[Sink] = (),
    watch: Watch | None = None,
) -> Ranking:
    """Scores every attributed training row for every query; the score is the mean over sites and layers.

    Args:
        train: the store of the training rows.
        queries: fields (Q D) of the queries; their sites and layers are the ones that are scored.
        scorer: a `rept.ranking.scorer.Scorer`; for each site and layer a copy of it is fitted first.
        top_k, bottom_k: hits and opponents to keep for each query.
        part: (i, n) scores the share of the i-th of n processes; `merge` puts the shares together.
        on_block: called with the number of rows of each block that is done.
        sinks: each is called with the rows and scores of each block, for what needs the whole ranking.
        watch: called with the rows of each block and the fields that the scorer needs, on ``device``.

    Raises:
        UsageError: the scorer needs a field that is not stored, or gives scores that are not finite or not (n Q).
        DamagedStore: a shard is damaged.
    """
    pairs = _pairs(queries, scorer.needs)
    keys = {pair: [Key(*pair, name) for name in scorer.needs] for pair in pairs}
    fitted = {pair: _fit(scorer, train, keys[pair], device, rows_per_block) for pair in pairs}
    of_queries = _Scores(fitted, queries, device)
    best, lowest = TopK(len(of_queries), top_k, device=device), TopK(len(of_queries), bottom_k, True, device=device)
    for block in train.blocks([key for pair in pairs for key in keys[pair]], rows_per_block, part):
        row = block.row.to(device)
        fields = {key: value.to(device) for key, value in block.fields.items()}
        score = of_queries(row, fields)
        best.add(row, score)
        lowest.add(row, score)
        for sink in sinks:
            sink(block.row, score.cpu())
        if watch is not None:
            watch(block.row, fields)
        if on_block is not None:
            on_block(len(row))
    return Ranking(best.hits(), lowest.hits())


def merge(parts: Sequence[Ranking], top_k: int, bottom_k: int = 0) -> Ranking:
    """One ranking from those of all processes."""
    return Ranking(
        Hits.merged([part.best for part in parts], top_k),
        Hits.merged([part.lowest for part in parts], bottom_k, lowest=True),
    )


def blocks_share(
    train: AttributionStore, queries: Mapping[Key, Tensor], hits: Hits, each_query: int = 10, most_queries: int = 100
) -> dict[Key, float]:
    """How much of the cosine of the concatenated blocks each block accounts for, over the best hits.

    ``sum x_b . y_b / (|x| |y|)`` over the hits x of all queries y, as a share of the sum of their cosines, where x and
    y are the concatenation of the blocks b at one site and layer. The shares of a site and layer add up to 1.

    Args:
        hits: (Q k) of these queries.
        each_query: so many of each query's hits are looked at.
        most_queries: so many queries, evenly spaced, at most: all hits of all queries might not fit in memory.
    """
    step = -(-len(hits.row) // most_queries)
    queries = {key: block[::step] for key, block in queries.items()}
    row = hits.row[::step, :each_query]  # (Q k)
    rows, inverse = np.unique(row.numpy(), return_inverse=True)
    index = torch.from_numpy(inverse).view(row.shape)
    stored = train.read(rows, list(queries))
    share = {}
    for pair in _pairs(queries, ()):
        blocks = {key: (stored[key].double(), block.double()) for key, block in queries.items() if key[:2] == pair}
        x_norm, y_norm = (torch.cat(side, dim=1).norm(dim=1) for side in zip(*blocks.values(), strict=True))
        scale = x_norm[index] * y_norm[:, None]  # (Q k)
        part = {}
        for key, (x, y) in blocks.items():
            product = torch.stack([(x[at] * y).sum(1) for at in index.T], dim=1)  # (Q k)
            part[key] = torch.where(scale > 0, product / scale, 0).sum().item()
        total = sum(part.values())
        share |= {key: value / total if total else 0.0 for key, value in part.items()}
    return share


class ScoreFile:
    """Whole rankings on disk: a `Sink` that keeps the scores of each block, for measures that need all of them.

    Blocks follow one another, each as its size, its rows, and then its scores query by query: one query's scores are
    read without the others'. A temporary file of one machine, not a format to keep.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stream = self.path.open("wb")

    def __call__(self, row: Tensor, score: Tensor) -> None:
        """Raises UsageError: the disk is full."""
        with self._writing():
            self._stream.write(np.array(score.shape, np.int64).tobytes())
            self._stream.write(row.numpy().tobytes())
            self._stream.write(score.numpy().T.tobytes())
            self._stream.flush()

    def close(self) -> None:
        """Raises UsageError: the disk is full, and what could not be written before cannot be written now."""
        with self._writing():
            self._stream.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(not_written(self.path, error)) from error


def read_scores(paths: Sequence[Path], query: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (N) and a query's scores (N) from the score files of all processes."""
    rows, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for path in paths:
        with path.open("rb") as stream:
            while len(shape := np.fromfile(stream, np.int64, 2)):
                count, queries = shape.tolist()
                rows.append(np.fromfile(stream, np.int64, count))
                stream.seek(4 * count * query, os.SEEK_CUR)
                scores.append(np.fromfile(stream, np.float32, count))
                stream.seek(4 * count * (queries - query - 1), os.SEEK_CUR)
    return np.concatenate(rows), np.concatenate(scores)


def _pairs(blocks: Mapping[Key, Tensor], needs: Sequence[str]) -> list[Pair]:
    """The sites and layers of the blocks, in order; raises UsageError if one lacks a field that is needed."""
    pairs = sorted({(key.site, key.layer) for key in blocks})
    for pair in pairs:
        missing = [name for name in needs if Key(*pair, name) not in blocks]
        if missing:
            has = ", ".join(key.field for key in blocks if key[:2] == pair)
            raise UsageError(
                f"Expected {pair[0]} at layer {pair[1]} to have the fields that the scorer needs ({', '.join(needs)}), "
                f"but it has {has}; extract them by extractor.fields, or choose another scorer."
            )
    return pairs


def _fit(
    scorer: Any, train: AttributionStore, keys: Sequence[Key], device: torch.device | str, rows_per_block: int
) -> Any:
    """A copy of the scorer, fitted to one site and layer; the rows are read only if it asks for them."""
    own = copy.deepcopy(scorer)
    own.fit(_TrainingRows(train, keys, device, rows_per_block))
    return own


class _Scores:
    """Mean scores over sites and layers of a block's rows for certain queries, by fitted scorers."""

    def __init__(self, fitted: Mapping[Pair, Any], queries: Mapping[Key, Tensor], device: torch.device | str) -> None:
        self._fitted = fitted
        self._asked = {
            pair: {name: queries[Key(*pair, name)].to(device) for name in scorer.needs}
            for pair, scorer in fitted.items()
        }
        self._count = len(next(iter(queries.values())))

    def __len__(self) -> int:
        return self._count

    def __call__(self, row: Tensor, fields: Mapping[Key, Tensor]) -> Tensor:
        """(n Q) for the rows (n) with their fields."""
        scores = []
        for pair, scorer in self._fitted.items():
            score = scorer({name: fields[Key(*pair, name)] for name in scorer.needs}, self._asked[pair])
            _check(score, scorer, row, self._count)
            scores.append(score)
        return torch.stack(scores).mean(0) if len(scores) > 1 else scores[0]


@dataclass(frozen=True)
class _TrainingRows:
    """Blocks of fields for a scorer's ``fit``, read anew each time it passes over them."""

    train: AttributionStore
    keys: Sequence[Key]
    device: torch.device | str
    rows_per_block: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for block in self.train.blocks(self.keys, self.rows_per_block):
            yield {key.field: block.fields[key].to(self.device) for key in self.keys}


def _check(score: Tensor, scorer: Any, row: Tensor, queries: int) -> None:
    """Raises UsageError unless there is one finite score for each row and query."""
    name = type(scorer).__name__
    if score.shape != (len(row), queries):
        raise UsageError(
            f"Expected the scorer {name} to give scores (N Q) = ({len(row)}, {queries}), but got {tuple(score.shape)}."
        )
    if not score.sum().isfinite() and not score.isfinite().all():  # the sum is quick, but may overflow
        i, query = (~score.isfinite()).nonzero()[0].tolist()
        raise UsageError(
            f"Expected finite scores from the scorer {name}, but got {score[i, query].item()} "
            f"for training row {row[i].item()} and query {query}."
        )
