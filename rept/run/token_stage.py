"""The last stage that needs the model: tokens.jsonl, the token scores of the best hits."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rept.data.query_groups import ALL, group_queries
from rept.data.samples import Sample
from rept.distributed.collectives import barrier, process
from rept.ranking.metrics import token_measures
from rept.ranking.token_influence import check_form
from rept.run.distinctive_tokens import BACKGROUND, DistinctiveTokens
from rept.run.job import Job
from rept.run.sample_rows import sample_rows
from rept.run.token_pairs import score_pairs
from rept.run.word_counts import write_words
from rept.signatures.extractor import ReadsAllPositions
from rept.types import Status
from rept.utils.console import say
from rept.utils.json_files import each_line, read_json, write_json, write_jsonl, write_lines
from rept.utils.progress import progress
from rept.utils.text import format_count


def write_tokens(job: Job, extractor: ReadsAllPositions, hits: Mapping[int, Sequence[int]], layer: int) -> None:
    """Writes tokens.jsonl and, if the true spans are known, the mean measures of token scores into metrics.json.

    Each rank writes its share of the queries' best hits to a file; rank 0 joins them in the order of a single process.
    """
    # If the model is split over the ranks, all run it for every pair, and rank 0 writes the result.
    rank, world_size = (0, 1) if job.in_step else process()
    shares = [job.folder.path / f".tokens-{i}-of-{world_size}" for i in range(world_size)]
    scored = _scored(job, extractor, hits, layer, rank, world_size)
    if job.in_step and not job.trainer.is_global_zero:
        deque(scored, maxlen=0)
    else:
        write_lines(shares[rank], scored)
    barrier(job.config.max_wait)
    if job.trainer.is_global_zero:
        _join(job, shares)
        write_words(job)


def _scored(
    job: Job, extractor: ReadsAllPositions, hits: Mapping[int, Sequence[int]], layer: int, rank: int, world_size: int
) -> Iterator[dict[str, Any]]:
    """This rank's lines of tokens.jsonl, each with its order and, if the true spans are known, its measures."""
    pairs = [(query, row) for query, rows in hits.items() for row in rows]
    encoded = lru_cache(maxsize=256)(job.datamodule.encoded)
    form = check_form(job.config.tokens.form)
    scorer = _distinctive(job, extractor, hits, layer) if form == "distinctive" else form
    found = score_pairs(job.model, extractor, job.datamodule, pairs, layer, scorer, rank=rank, world_size=world_size)
    with progress("Scoring tokens", total=2 * len(pairs), unit="texts") as advance:
        for one in found:
            text = encoded(one.side, one.row if one.side == "train" else one.query)
            assert not isinstance(text, Status)  # only attributed rows are ranked
            advance(world_size)
            scores = [float(f"{score:.6g}") for score in one.scores.tolist()]
            compared = [one] if isinstance(scorer, str) else scorer.references(scorer.number[one.query], one.side)
            line = {
                "query": one.query,
                "row": one.row,
                "side": one.side,
                "tokens": [text.text[start:end] for start, end in text.pieces],
                "scores": scores,
                "special": text.special,
                "agrees": [[i for i in others if i >= 0] for others in one.agrees.tolist()],
                "layer": layer,
                "form": form,
                "references": len(compared),
            }
            counts = one.side == "train" and not _is_query(job, one.row, one.query)
            measured = token_measures(scores, text.marked, text.response) if counts and any(text.marked) else {}
            yield {"order": one.order, "measured": measured, "line": line}


def _distinctive(
    job: Job, extractor: ReadsAllPositions, hits: Mapping[int, Sequence[int]], layer: int
) -> DistinctiveTokens:
    """The queries of a label, or of a name in ``behaviours=FILE``, are scored together; all others each alone."""
    samples = {query: job.datamodule.sample("query", query) for query, rows in hits.items() if rows}
    labels = {query: sample.label for query, sample in samples.items() if isinstance(sample, Sample)}
    path = job.config.behaviours
    named = [queries for name, queries in group_queries(labels, path).behaviours.items() if path or name != ALL]
    alone = sorted(samples.keys() - {query for queries in named for query in queries})
    behaviours = [*named, *([query] for query in alone)]
    several = [query for query, count in Counter(chain(*named)).items() if count > 1]
    if several and job.trainer.is_global_zero:
        say(
            f"{format_count(len(several), 'query')} in several behaviours of {path}, such as query {several[0]}: token "
            "scores are those of the first behaviour in the file that names the query."
        )
    background = sample_rows(job, BACKGROUND)
    return DistinctiveTokens(job.model, extractor, job.datamodule, layer, behaviours, hits, background)


def _is_query(job: Job, row: int, query: int) -> bool:
    """Whether a training row has the prompt and the response of a query, so that it counts in no measure."""
    samples = job.datamodule.sample("train", row), job.datamodule.sample("query", query)
    one, other = ((sample.prompt, sample.response) for sample in samples if isinstance(sample, Sample))
    return one == other


def _join(job: Job, shares: Sequence[Path]) -> None:
    found: list[dict[str, float | None]] = []

    def lines() -> Iterator[dict[str, Any]]:
        for entry in merge(*map(each_line, shares), key=lambda entry: entry["order"]):
            if entry["measured"]:
                found.append(entry["measured"])
            yield entry["line"]

    write_jsonl(job.folder.tokens, lines())
    for share in shares:
        share.unlink()
    if found:
        values = {name: [value for one in found if (value := one[name]) is not None] for name in found[0]}
        means = {name: float(np.mean(known)) for name, known in values.items() if known}
        write_json(job.folder.metrics, read_json(job.folder.metrics) | {"tokens": means | {"texts": len(found)}})
