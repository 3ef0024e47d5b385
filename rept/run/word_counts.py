"""words.jsonl: which words token scores mark in the best rows of each label, and how many other rows have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from rept.data.encoder import Encoded
from rept.data.query_groups import group_queries
from rept.data.samples import Sample
from rept.results.marked_words import marked_phrases, token_words
from rept.results.records import MarkedWords, TokenScores, read_records
from rept.results.shading import level, scale
from rept.run.job import Job
from rept.utils.json_files import each_line, write_jsonl

OTHERS = 400  # training rows in no behaviour's ranking that are hits of the fewest queries, drawn with the run's seed
MARKED = 3  # the lowest of the eight shades that counts

Row = list[tuple[str, bool]]  # words, and whether each is marked


def write_words(job: Job) -> None:
    """Writes words.jsonl from tokens.jsonl and the training rows; a row counts once for each label.

    Single queries find many rows that share only their subject. So of a label's hits, those count that the ranking of
    its behaviour lists too, if it has one that lists some.
    """
    best: dict[str | None, dict[int, TokenScores]] = {}
    for scored in read_records(job.folder.tokens, TokenScores):
        sample = job.datamodule.sample("query", scored.query)
        if scored.side == "train" and isinstance(sample, Sample):
            best.setdefault(sample.label, {}).setdefault(scored.row, scored)
    ranked = _ranked(job)
    for label, rows in best.items():
        best[label] = {row: scored for row, scored in rows.items() if row in ranked.get(label, ())} or rows
    others = {
        row: _parts(text, [False] * len(text.pieces)) for row, text in _other_rows(job, set().union(*ranked.values()))
    }
    write_jsonl(job.folder.words, _lines(job, best, others))


def _lines(
    job: Job, best: dict[str | None, dict[int, TokenScores]], others: dict[int, dict[str, Row]]
) -> Iterator[dict[str, Any]]:
    for label, rows in best.items():
        texts = [(job.datamodule.encoded("train", row), scored) for row, scored in rows.items()]
        own = [_parts(text, _marks(scored)) for text, scored in texts if isinstance(text, Encoded)]
        unlike = [one for row, one in others.items() if row not in rows]
        for part in ("prompt", "response"):
            elsewhere = [[word for word, _ in other[part]] for other in unlike]
            for words, count, other in marked_phrases([row[part] for row in own], elsewhere):
                yield asdict(MarkedWords(label, part, words, count, len(own), other, len(unlike)))


def _ranked(job: Job) -> dict[str | None, set[int]]:
    """The rows that rankings of behaviours list, by the labels of the behaviours' queries."""
    labels: dict[int, str | None] = {line["query"]: line["label"] for line in each_line(job.folder.queries)}
    found: dict[str | None, set[int]] = {}
    if job.folder.behaviours.is_file():
        listed: dict[str, set[int]] = {}
        for line in each_line(job.folder.behaviours):
            listed.setdefault(line["behaviour"], set()).add(line["row"])
        for name, queries in group_queries(labels, job.config.behaviours).behaviours.items():
            for label in {labels[query] for query in queries}:
                found.setdefault(label, set()).update(listed.get(name, ()))
    return found


def _other_rows(job: Job, ranked: Collection[int]) -> Iterator[tuple[int, Encoded]]:
    hits = Counter(line["row"] for line in each_line(job.folder.results))
    order = np.random.default_rng(job.config.seed).permutation(len(job.datamodule.source("train"))).tolist()
    # In a small data set, many queries have most rows among their hits.
    least = sorted(order, key=lambda row: (row in ranked, hits[row]))
    texts = ((row, job.datamodule.encoded("train", row)) for row in least)
    return islice(((row, text) for row, text in texts if isinstance(text, Encoded)), OTHERS)


def _marks(scored: TokenScores) -> list[bool]:
    largest = scale(scored)
    return [level(score, largest) >= MARKED for score in scored.scores]


def _parts(text: Encoded, marked: list[bool]) -> dict[str, Row]:
    """The words of a text's prompt and of its response, without special tokens."""
    found = {}
    for part, of_response in (("prompt", False), ("response", True)):
        own = [i for i, is_response in enumerate(text.response) if is_response is of_response]
        tokens = [" " if text.special[i] else text.text[slice(*text.pieces[i])] for i in own]
        found[part] = token_words(tokens, [marked[i] for i in own])
    return found
