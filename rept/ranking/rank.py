"""Ranks the training rows for each query in one pass over a store.

Memory is that of a block of rows, whatever their number. Equal scores rank by row number, across blocks and processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rept.distributed.collectives import process
from rept.errors import UsageError
from rept.ranking.fitting import SiteLayer, fit_scorers
from rept.ranking.scorer import Scorer
from rept.ranking.topk import Hits, TopK
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.files import write_errors

Sink = Callable[[Tensor, Tensor], None]  # takes the row numbers (n) and scores (n Q) of a block
Watch = Callable[[Tensor, Mapping[Key, Tensor]], None]  # takes the row numbers (n) and fields (n D) of a block


@dataclass(frozen=True)
class Ranking:
    """Each query's best rows, and its lowest."""

    best: Hits
    lowest: Hits  # (Q 0) without bottom_k


def rank(
    train: AttributionStore,
    queries: Mapping[Key, Tensor],
    scorer: Scorer,
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
        queries: fields (Q D) of the queries; rows are scored at their sites and layers.
        scorer: a copy of it is fitted to each site and layer first.
        top_k, bottom_k: hits and opponents to keep for each query.
        part: (i, n) scores the share of the i-th of n processes; `merge` joins the shares. Where it is `process`, all
            processes call this, and share the reading for the fit too.
        rows_per_block: rows that are read and scored at a time; few enough to stay in a processor's cache, and enough
            that its threads, which wait for each other a dozen times a block, do so seldom.
        on_block: called with the number of rows of each block after it is scored.
        sinks: each is called with the rows and scores of each block.
        watch: called with the rows of each block and the fields that the scorer needs, on ``device``; the next block
            overwrites these fields.

    Raises:
        UsageError: the scorer needs a field that is not stored, or gives scores that are not finite or not (n Q).
        DamagedStore: a shard is damaged.
    """
    places = _places(queries, scorer.needs)
    fitted = fit_scorers(scorer, train, places, device, rows_per_block, together=part == process())
    # Made once, as a scorer may keep what it computes of them.
    by_place = {place: {field: queries[Key(*place, field)].to(device) for field in scorer.needs} for place in places}
    count = len(next(iter(queries.values())))
    best, lowest = TopK(count, top_k, device=device), TopK(count, bottom_k, True, device=device)
    keys = [Key(*place, field) for place in places for field in scorer.needs]
    for block in train.blocks(keys, rows_per_block, part, reuse=True):
        row = block.row.to(device)
        fields = {key: value.to(device) for key, value in block.fields.items()}
        score = _mean_score(fitted, row, fields, by_place)
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
    """The ranking of all rows, from those of all processes."""
    return Ranking(
        Hits.merged([part.best for part in parts], top_k),
        Hits.merged([part.lowest for part in parts], bottom_k, lowest=True),
    )


def blocks_share(
    train: AttributionStore, queries: Mapping[Key, Tensor], hits: Hits, each_query: int = 10, most_queries: int = 100
) -> dict[Key, float]:
    """How much each block contributes to the cosine of the concatenated blocks, over the best hits.

    ``sum x_b . y_b / (|x| |y|)`` over the hits x of all queries y, as a share of the sum of their cosines, where x and
    y are the concatenation of the blocks b at one site and layer. The shares of a site and layer add up to 1.

    Args:
        hits: (Q k) of these queries.
        each_query: hits of each query that are read.
        most_queries: queries that are read, evenly spaced: all hits of all queries might not fit in memory.
    """
    step = -(-len(hits.row) // most_queries)
    queries = {key: block[::step] for key, block in queries.items()}
    row = hits.row[::step, :each_query]  # (Q k)
    rows, inverse = np.unique(row.numpy(), return_inverse=True)
    index = torch.from_numpy(inverse).view(row.shape)
    stored = train.read(rows, list(queries))
    share: dict[Key, float] = {}
    for place in _places(queries, ()):
        blocks = {key: (stored[key].double(), block.double()) for key, block in queries.items() if key[:2] == place}
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
    """Whole rankings on disk: a `Sink` that writes the scores of each block, for measures that need all of them.

    Each block is its size (n Q), its rows, and its scores query by query, so that one query's scores are read without
    the others'. A temporary file in the machine's own byte order.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stream = self.path.open("wb")

    def __call__(self, row: Tensor, score: Tensor) -> None:
        """Raises UsageError: the disk is full."""
        with write_errors(self.path):
            self._stream.write(np.array(score.shape, np.int64).tobytes())
            self._stream.write(row.numpy().tobytes())
            self._stream.write(score.numpy().T.tobytes())
            self._stream.flush()

    def close(self) -> None:
        """Raises UsageError: the disk is full, and the buffered rest cannot be written."""
        with write_errors(self.path):
            self._stream.close()


def read_scores(paths: Sequence[Path], query: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (N) and scores (N) of a query, from the score files of all processes."""
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


def _places(blocks: Mapping[Key, Tensor], needs: Sequence[str]) -> list[SiteLayer]:
    """The sites and layers of the blocks, in order; raises UsageError if one lacks a field that is needed."""
    places = sorted({(key.site, key.layer) for key in blocks})
    for site, layer in places:
        if any(Key(site, layer, field) not in blocks for field in needs):
            has = ", ".join(key.field for key in blocks if key[:2] == (site, layer))
            raise UsageError(
                f"Expected {site} at layer {layer} to have the fields that the scorer needs ({', '.join(needs)}), "
                f"but it has {has}; extract them by extractor.fields, or choose another scorer."
            )
    return places


def _mean_score(
    fitted: Mapping[SiteLayer, Scorer],
    row: Tensor,
    fields: Mapping[Key, Tensor],
    by_place: Mapping[SiteLayer, Mapping[str, Tensor]],
) -> Tensor:
    """The mean over sites and layers of the scores (n Q) of rows (n) with these fields."""
    scores = []
    for place, scorer in fitted.items():
        score = scorer({field: fields[Key(*place, field)] for field in scorer.needs}, by_place[place]).float()
        _check(score, scorer, row, len(next(iter(by_place[place].values()))))
        scores.append(score)
    return torch.stack(scores).mean(0) if len(scores) > 1 else scores[0]


def _check(score: Tensor, scorer: Scorer, row: Tensor, queries: int) -> None:
    """Raises UsageError unless there is one finite score for each row and query."""
    name = type(scorer).__name__
    if score.shape != (len(row), queries):
        raise UsageError(
            f"Expected the scorer {name} to give scores (N Q) = ({len(row)}, {queries}), but got {tuple(score.shape)}."
        )
    if not score.sum().isfinite() and not score.isfinite().all():  # the sum is fast, but may overflow
        i, query = (~score.isfinite()).nonzero()[0].tolist()
        raise UsageError(
            f"Expected finite scores from the scorer {name}, but got {score[i, query].item()} "
            f"for training row {row[i].item()} and query {query}."
        )
