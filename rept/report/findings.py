"""What a run found: the few figures and examples that the page begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rept.results.html_text import format_count
from rept.results.records import Hit
from rept.results.shading import Piece, excerpt
from rept.results.trace import Trace

FIRST = 10  # a row counts for a query when it is among its first ten hits


@dataclass(frozen=True)
class BehaviourFindings:
    """The queries of one label (without labels, all of them), and the clearest of them as an example."""

    label: str | None
    queries: int
    matched: int | None  # queries whose best hit has their label; None without labels
    words: list[tuple[str, int]]  # and the number of best hits among whose strongest words each is
    example: dict[str, Any]  # as in queries.jsonl
    hit: Hit  # the example's best one
    pieces: list[Piece]  # an excerpt of the hit, with shades; empty without token scores
    cut_before: bool
    cut_after: bool


@dataclass(frozen=True)
class Culprit:
    """A training row that was found often."""

    hit: Hit  # the one with its highest score
    count: int  # queries that have it among their first ten hits
    score: float  # mean over those hits


class Findings:
    """Everything that the top of the page says."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.best = {query: trace.hits(query)[0] for query in trace.answered}
        self.labels = {query: trace.queries[query]["label"] for query in trace.answered}

    @cached_property
    def labelled(self) -> bool:
        """Whether the best hits can be compared with the queries' labels."""
        hit_labels = any(hit.label is not None for hit in self.best.values())
        return hit_labels and any(label is not None for label in self.labels.values())

    @cached_property
    def calibrated(self) -> bool:
        return any(hit.flagged is not None for query in self.best for hit in self.trace.hits(query))

    @cached_property
    def rows_found(self) -> int:
        """Different training rows among the first ten hits of all queries."""
        return len(self._first_hits)

    @cached_property
    def headline(self) -> str:
        """The finding in one sentence."""
        if not self.best:
            return "No query could be traced."
        total = format_count(len(self.best), "query")
        if self.labelled:
            labelled = [query for query, label in self.labels.items() if label is not None]
            matched = sum(self.best[query].label == self.labels[query] for query in labelled)
            of_all = format_count(len(labelled), "query")
            return f"{matched:,} of {of_all} lead straight to training rows of their own behaviour."
        if self.calibrated:
            flagged = sum(any(hit.flagged for hit in self.trace.hits(query)) for query in self.best)
            return f"For {flagged:,} of {total}, a training row stands out."
        share = sum(one.count for one in self.culprits) / sum(map(len, self._first_hits.values()))
        rows = format_count(len(self.culprits), "training row")
        return f"{rows} account for {share:.0%} of the first hits of {total}."

    @cached_property
    def behaviours(self) -> list[BehaviourFindings]:
        """One for each label among the queries, most queries first."""
        if not self.labelled:
            return [self._behaviour(None, list(self.best))] if self.best else []
        counts = Counter(label for label in self.labels.values() if label is not None)
        return [
            self._behaviour(label, [query for query in self.best if self.labels[query] == label])
            for label, _ in counts.most_common()
        ]

    @cached_property
    def culprits(self) -> list[Culprit]:
        """The ten rows that are among the first ten hits of most queries; of equals, the higher mean score first."""
        culprits = [
            Culprit(max(hits, key=lambda hit: hit.score), len(hits), sum(hit.score for hit in hits) / len(hits))
            for hits in self._first_hits.values()
        ]
        return sorted(culprits, key=lambda one: (-one.count, -one.score, one.hit.row))[:FIRST]

    @cached_property
    def _first_hits(self) -> dict[int, list[Hit]]:
        """The first ten hits of all queries, by row."""
        found: dict[int, list[Hit]] = {}
        for query in self.best:
            for hit in self.trace.hits(query)[:FIRST]:
                found.setdefault(hit.row, []).append(hit)
        return found

    def _behaviour(self, label: str | None, queries: Sequence[int]) -> BehaviourFindings:
        words = Counter(word for query in queries for word in self.trace.words(query))
        example = self.trace.clearest(queries)
        scored = self.trace.best_tokens(example).get("train")
        pieces, cut_before, cut_after = excerpt(scored) if scored else ([], False, False)
        return BehaviourFindings(
            label=label,
            queries=len(queries),
            matched=sum(self.best[query].label == label for query in queries) if self.labelled else None,
            words=words.most_common(6),
            example=self.trace.queries[example],
            hit=self.best[example],
            pieces=pieces,
            cut_before=cut_before,
            cut_after=cut_after,
        )
