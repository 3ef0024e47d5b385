"""The page's data: queries, training rows and token scores, as blocks that the page unpacks when it shows them.

index       every query with its text and the rows, scores and groups of its hits; the label and block of every row
rows-N      texts of training rows, each once however many queries it was found for
pairs-Q     token scores of query Q and its hits, whole numbers of thousandths of a text's largest score
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rept.results.records import Hit, TokenScores
from rept.results.shading import scale
from rept.results.trace import Trace
from rept.utils.text import format_count

ROWS_PER_BLOCK = 64
STEPS = 1000  # token scores are kept to a thousandth of the text's largest one
OPPONENTS = 5


@dataclass(frozen=True)
class Limits:
    """The most that the page has of each kind; the first are kept."""

    queries: int
    hits: int  # of each query
    scored: int  # hits of each query with their token scores
    characters: int  # of each text; of a text with token scores, the stretch around the strongest token


# Tried in this order until the page is small enough; the last one is taken in any case.
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
    """Counts what the page does not have of the run."""

    queries: int = 0
    hits: int = 0
    scored: int = 0
    texts: int = 0

    def described(self, limits: Limits) -> list[str]:
        """Each kind that is not 0, with the file that has all of it."""
        kinds = (
            ("", self.queries, "query", f"after the first {limits.queries:,}: queries.jsonl"),
            ("", self.hits, "hit", f"after a query's first {limits.hits}: results.jsonl"),
            ("token scores of ", self.scored, "hit", f"after a query's first {limits.scored}: tokens.jsonl"),
            ("the rest of ", self.texts, "text", f"beyond {limits.characters:,} characters: results.jsonl"),
        )
        return [f"{what}{format_count(count, noun)} {where}" for what, count, noun, where in kinds if count]


class PageBlocks:
    """All blocks of a run by name, and what they leave out."""

    def __init__(self, trace: Trace, limits: Limits) -> None:
        self.trace, self.limits, self.left_out = trace, limits, LeftOut()
        self.rows: dict[int, dict[str, Any]] = {}
        self.labels: dict[int, str | None] = {}
        self.by_name = self._blocks()

    def _blocks(self) -> dict[str, Any]:
        queries = self.trace.queries[: self.limits.queries]
        self.left_out.queries = len(self.trace.queries) - len(queries)
        pairs: dict[str, Any] = {}
        lines = []
        for query in queries:
            lines.append(self._query(query))
            if scored := self._pairs(query["query"]):
                pairs[f"pairs-{query['query']}"] = scored
        order = sorted(self.rows)
        parts = [order[i : i + ROWS_PER_BLOCK] for i in range(0, len(order), ROWS_PER_BLOCK)]
        rows = {row: [self.labels[row], block] for block, part in enumerate(parts) for row in part}
        texts = {f"rows-{block}": {row: self.rows[row] for row in part} for block, part in enumerate(parts)}
        return {"index": {"queries": lines, "rows": rows}} | texts | pairs

    def _query(self, query: dict[str, Any]) -> dict[str, Any]:
        number = query["query"]
        hits, scored = self._shown(number)
        self.left_out.hits += len(self.trace.hits(number)) - len(hits)
        self.left_out.scored += len(self.trace.scored(number)) - len(scored)
        line = {key: query[key] for key in ("query", "label", "generated", "status")}
        line |= {key: self._cut(query[key]) for key in ("prompt", "response")}
        line |= {"hits": [self._hit(hit) for hit in hits], "scored": scored}
        line["lowest"] = [self._hit(hit) for hit in self.trace.opponents(number)[:OPPONENTS]]
        return line | ({"unshown": True} if number in self.trace.not_shown else {})

    def _shown(self, query: int) -> tuple[list[Hit], list[int]]:
        """The hits of a query that the page has, and the rows of those for which it has token scores."""
        hits, scored = self.trace.hits(query)[: self.limits.hits], self.trace.scored(query)
        return hits, [hit.row for hit in hits if hit.row in scored][: self.limits.scored]

    def _hit(self, hit: Hit) -> dict[str, Any]:
        if hit.row not in self.rows:
            self.labels[hit.row] = hit.label
            self.rows[hit.row] = {"prompt": self._cut(hit.prompt), "response": self._cut(hit.response)}
        line = {"row": hit.row, "rank": hit.rank, "score": hit.score, "group": hit.group}
        optional = {"p": hit.p_value, "flagged": hit.flagged, "same": hit.same_as_query or None}
        return line | {key: value for key, value in optional.items() if value is not None}

    def _pairs(self, query: int) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": {}}
        for row in self._shown(query)[1]:
            sides = self.trace.tokens(query, row)
            if set(sides) != {"train", "query"}:
                continue
            own = found.setdefault("tokens", self._tokens(sides["query"]))
            theirs = self.rows[row].setdefault("tokens", self._tokens(sides["train"]))
            found["rows"][row] = {
                "train": _scores(sides["train"], theirs, own),
                "query": _scores(sides["query"], own, theirs),
            }
        return found if found["rows"] else {}

    def _tokens(self, scored: TokenScores) -> dict[str, Any]:
        """A text once, with the length of each token in it as JavaScript counts (UTF-16 code units)."""
        first, last = _stretch(scored, self.limits.characters)
        self.left_out.texts += (first, last) != (0, len(scored.tokens))
        return {
            "text": "".join(scored.tokens[first:last]),
            "lengths": [len(token.encode("utf-16-le", "surrogatepass")) // 2 for token in scored.tokens[first:last]],
            "special": "".join("01"[special] for special in scored.special[first:last]),
            "before": first,
            "after": len(scored.tokens) - last,
        }

    def _cut(self, text: str) -> str | list[str | int]:
        """The text, or its beginning and the number of characters left out."""
        if len(text) <= self.limits.characters:
            return text
        self.left_out.texts += 1
        return [text[: self.limits.characters], len(text) - self.limits.characters]


def _scores(scored: TokenScores, own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    largest = scale(scored)
    kept = slice(own["before"], own["before"] + len(own["lengths"]))
    whole = not other["before"] and not other["after"]
    return {
        "scale": float(f"{largest:.4g}"),
        "scores": [round(STEPS * score / largest) for score in scored.scores[kept]],
        "agrees": scored.agrees[kept] if whole else [_shifted(at, other) for at in scored.agrees[kept]],
    }


def _shifted(positions: Iterable[int], other: dict[str, Any]) -> list[int]:
    """Positions in the part of the other text that the page has."""
    shifted = (position - other["before"] for position in positions)
    return [position for position in shifted if 0 <= position < len(other["lengths"])]


def _stretch(scored: TokenScores, characters: int) -> tuple[int, int]:
    """The tokens to keep, as (first, last + 1): all, or as many characters around the one with the largest score."""
    lengths = [len(token) for token in scored.tokens]
    if sum(lengths) <= characters:
        return 0, len(lengths)
    first = max(range(len(lengths)), key=lambda i: 0.0 if scored.special[i] else scored.scores[i])
    spare = characters // 2
    while first and spare >= lengths[first - 1]:
        first -= 1
        spare -= lengths[first]
    last = first
    while last < len(lengths) and characters >= lengths[last]:
        characters -= lengths[last]
        last += 1
    return first, last
