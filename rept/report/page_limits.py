"""How much of a run the page carries, so that it stays a file that one can send."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that the page holds of each kind; the first are kept."""

    queries: int
    hits: int  # of each query
    scored: int  # hits of each query with their token scores
    characters: int  # of each text; of a text with token scores, the stretch that holds the strongest token


# Tried in this order until the page is small enough; the last one is taken whatever comes of it.
LADDER = (
    Limits(queries=2000, hits=20, scored=20, characters=20_000),
    Limits(queries=2000, hits=20, scored=14, characters=10_000),
    Limits(queries=2000, hits=20, scored=10, characters=6_000),
    Limits(queries=2000, hits=20, scored=5, characters=3_000),
    Limits(queries=2000, hits=20, scored=3, characters=2_000),
    Limits(queries=1000, hits=10, scored=2, characters=1_200),
    Limits(queries=500, hits=10, scored=1, characters=800),
    Limits(queries=200, hits=5, scored=1, characters=500),
)


@dataclass
class LeftOut:
    """What the page does not hold of the run, counted while it is made."""

    queries: int = 0
    hits: int = 0
    scored: int = 0
    texts: int = 0

    def told(self, limits: Limits) -> list[str]:
        """Each kind of loss, with the file that has it all."""
        told = (
            (self.queries, f"{self.queries:,} queries after the first {limits.queries:,}: queries.jsonl"),
            (self.hits, f"{self.hits:,} hits after a query's first {limits.hits}: results.jsonl"),
            (self.scored, f"token scores of {self.scored:,} hits after a query's first {limits.scored}: tokens.jsonl"),
            (self.texts, f"the rest of {self.texts:,} texts beyond {limits.characters:,} characters: results.jsonl"),
        )
        return [words for count, words in told if count]
