"""The last stage that needs the model: token scores of the best hits, in tokens.jsonl. Every rank scores its share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import merge
from pathlib import Path
from typing import Any

import numpy as np

from rept.distributed.collectives import meet, process
from rept.ranking.metrics import token_average_precision
from rept.run.job import Job
from rept.run.token_pairs import score_pairs
from rept.utils.json_files import each_line, read_json, write_json, write_jsonl, write_lines
from rept.utils.progress import progress


def write_tokens(job: Job, hits: Mapping[int, Sequence[int]], layer: int) -> None:
    """tokens.jsonl; and where the true spans are known, the mean token_average_precision in metrics.json.

    Each rank leaves its share in a file of its own, and rank 0 joins them in the order of a single process.

    Args:
        hits: the row numbers of each query's best hits.
        layer: from 1.
    """
    # Where the model is split over the ranks, all must run it for every pair, and rank 0 keeps what comes of it.
    rank, world_size = (0, 1) if job.in_step else process()
    shares = [job.folder.path / f".tokens-{i}-of-{world_size}" for i in range(world_size)]
    scored = _scored(job, hits, layer, rank, world_size)
    if job.in_step and not job.trainer.is_global_zero:
        deque(scored, maxlen=0)
    else:
        write_lines(shares[rank], scored)
    meet(job.config.max_wait)
    if job.trainer.is_global_zero:
        _join(job, shares)


def _scored(
    job: Job, hits: Mapping[int, Sequence[int]], layer: int, rank: int, world_size: int
) -> Iterator[dict[str, Any]]:
    """This rank's lines of tokens.jsonl, each with its place and, where the true spans are known, its precision."""
    pairs = [(query, row) for query, rows in hits.items() for row in rows]
    encoded = lru_cache(maxsize=256)(job.datamodule.encoded)
    form = job.config.tokens.form
    ranks = {"rank": rank, "world_size": world_size}
    with progress("Scoring tokens", total=2 * len(pairs), unit="texts") as advance:
        for one in score_pairs(job.model, job.extractor, job.datamodule, pairs, layer, form, **ranks):
            text = encoded(one.side, one.row if one.side == "train" else one.query)
            advance(world_size)
            line = {
                "query": one.query,
                "row": one.row,
                "side": one.side,
                "tokens": [text.text[start:end] for start, end in text.pieces],
                "scores": [float(f"{score:.6g}") for score in one.scores.tolist()],
                "special": text.special,
                "agrees": [[i for i in others if i >= 0] for others in one.agrees.tolist()],
                "layer": layer,
                "form": form,
            }
            judged = token_average_precision(line["scores"], text.marked) if one.side == "train" else None
            yield {"place": one.place, "precision": judged, "line": line}


def _join(job: Job, shares: Sequence[Path]) -> None:
    found: list[float] = []

    def lines() -> Iterator[dict[str, Any]]:
        for entry in merge(*map(each_line, shares), key=lambda entry: entry["place"]):
            if entry["precision"] is not None:
                found.append(entry["precision"])
            yield entry["line"]

    write_jsonl(job.folder.tokens, lines())
    for share in shares:
        share.unlink()
    if found:
        measured = {"token_average_precision": float(np.mean(found)), "texts": len(found)}
        write_json(job.folder.metrics, read_json(job.folder.metrics) | {"tokens": measured})
