"""What a run found, in the few figures and examples that the page opens with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rept.results.html_text import count
from rept.results.records import Hit, TokenScores
from rept.results.shading import Piece, excerpt, strongest_words
from rept.results.trace import Trace

FIRST = 10  # a row counts for a query when it is among its first ten hits


@dataclass(frozen=True)
class Example:
    """A query and the row found for it, the row's text shaded where it was scored token by token."""

    query: int
    prompt: str
    response: str
    generated: bool
    hit: Hit
    pieces: list[Piece]  # empty: no token scores
    cut_before: bool
    cut_after: bool


@dataclass(frozen=True)
class BehaviourFindings:
    """The queries of one label; without labels, all of them."""

    label: str | None
    queries: int
    matched: int | None  # queries whose best hit has their label; None without labels
    words: list[tuple[str, int]]  # and the best hits among whose three strongest words each is
    example: Example | None


@dataclass(frozen=True)
class Culprit:
    """A training row that was found often."""

    hit: Hit  # the one with its highest score
    count: int  # queries that have it among their first ten hits
    labels: list[str]  # of these queries, most frequent first
    score: float  # mean over those hits


class Findings:
    """Everything that the top of the page says."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.answered = [q for q in trace.queries if trace.hits(q["query"])]

    @cached_property
    def labelled(self) -> bool:
        """Whether the best hits can be held against the queries' labels."""
        hit_labels = any(self._best(q["query"]).label is not None for q in self.answered)
        return hit_labels and any(q["label"] is not None for q in self.answered)

    @cached_property
    def calibrated(self) -> bool:
        return any(hit.flagged is not None for q in self.answered for hit in self.trace.hits(q["query"]))

    @cached_property
    def flagged(self) -> int:
        """Queries for which a training row stands out."""
        return sum(any(hit.flagged for hit in self.trace.hits(q["query"])) for q in self.answered)

    @cached_property
    def rows_found(self) -> int:
        """Different training rows among the first ten hits of all queries."""
        return len(self._counts)

    @cached_property
    def headline(self) -> str:
        """The finding in one sentence."""
        total = len(self.answered)
        if not total:
            return "No query could be traced."
        if self.labelled:
            labelled = [q for q in self.answered if q["label"] is not None]
            matched = sum(self._best(q["query"]).label == q["label"] for q in labelled)
            total = len(labelled)
            return f"{matched:,} of {count(total, 'query')} lead straight to training rows of their own behaviour."
        if self.calibrated:
            return f"For {self.flagged:,} of {count(total, 'query')}, a training row stands out."
        share = sum(culprit.count for culprit in self.culprits) / sum(self._counts.values())
        most = count(len(self.culprits), "training row")
        return f"{most} account for {share:.0%} of the first hits of {count(total, 'query')}."

    @cached_property
    def behaviours(self) -> list[BehaviourFindings]:
        """One for each label among the queries, most queries first."""
        if not self.labelled:
            return [self._behaviour(None, self.answered)] if self.answered else []
        labels = Counter(q["label"] for q in self.answered if q["label"] is not None)
        queries = {label: [q for q in self.answered if q["label"] == label] for label, _ in labels.most_common()}
        return [self._behaviour(label, asked) for label, asked in queries.items()]

    @cached_property
    def culprits(self) -> list[Culprit]:
        """The ten rows that are among the first ten hits of most queries; of equals, the higher mean score first."""
        found: dict[int, list[Hit]] = {}
        for query in self.answered:
            for hit in self.trace.hits(query["query"])[:FIRST]:
                found.setdefault(hit.row, []).append(hit)
        culprits = []
        for hits in found.values():
            labels = Counter(self.trace.queries[hit.query]["label"] for hit in hits)
            culprits.append(
                Culprit(
                    hit=max(hits, key=lambda hit: hit.score),
                    count=len(hits),
                    labels=[label for label, _ in labels.most_common() if label is not None],
                    score=sum(hit.score for hit in hits) / len(hits),
                )
            )
        return sorted(culprits, key=lambda one: (-one.count, -one.score, one.hit.row))[:FIRST]

    @cached_property
    def _counts(self) -> Counter[int]:
        return Counter(hit.row for q in self.answered for hit in self.trace.hits(q["query"])[:FIRST])

    def _best(self, query: int) -> Hit:
        return self.trace.hits(query)[0]

    def _behaviour(self, label: str | None, queries: Sequence[dict]) -> BehaviourFindings:
        best = [self._best(query["query"]) for query in queries]
        scored = [self._scored(hit) for hit in best]
        words = Counter(word for tokens in scored if tokens for word in strongest_words(tokens))
        matching = [hit for hit in best if hit.label == label] if self.labelled else best

        def typical(hit: Hit) -> tuple[bool, int, float]:
            """How well a hit stands for the others: its strongest words are theirs too."""
            tokens = self._scored(hit)
            return tokens is not None, sum(words[word] for word in strongest_words(tokens)) if tokens else 0, hit.score

        return BehaviourFindings(
            label=label,
            queries=len(queries),
            matched=len(matching) if self.labelled else None,
            words=words.most_common(6),
            example=self._example(max(matching or best, key=typical)),
        )

    def _example(self, hit: Hit) -> Example:
        query = self.trace.queries[hit.query]
        scored = self._scored(hit)
        pieces, before, after = excerpt(scored) if scored else ([], False, False)
        return Example(
            query=hit.query,
            prompt=query["prompt"],
            response=query["response"],
            generated=query["generated"],
            hit=hit,
            pieces=pieces,
            cut_before=before,
            cut_after=after,
        )

    def _scored(self, hit: Hit) -> TokenScores | None:
        scored = hit.row in self.trace.scored(hit.query)
        return self.trace.tokens(hit.query, hit.row).get("train") if scored else None
