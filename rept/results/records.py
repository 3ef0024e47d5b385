"""The records of a result: hits and token scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from rept.errors import UsageError
from rept.utils.json_files import each_line


@dataclass(frozen=True, kw_only=True)
class FoundRow:
    """A training row that was found; ``rank`` counts from 1, ``row`` from 0."""

    rank: int
    row: int
    score: float
    label: str | None
    prompt: str
    response: str
    p_value: float | None = None  # for a query in calibrated runs only, for a behaviour of at least five queries
    flagged: bool | None = None  # in calibrated runs only: whether it stands out


@dataclass(frozen=True, kw_only=True)
class Hit(FoundRow):
    """A training row found for a query."""

    query: int
    same_as_query: bool  # its prompt and response are the query's own
    group: int  # shared by near-duplicates: the rank of the first of them


@dataclass(frozen=True, kw_only=True)
class BehaviourHit(FoundRow):
    """A training row found for a behaviour; it stands out if ``false_share`` is within the rate."""

    behaviour: str
    false_share: float | None = None  # expected share of false rows among it and likelier ones


@dataclass(frozen=True)
class TokenScores:
    """The tokens of one side of a pair with their scores; ``"".join(tokens)`` is the rendered text."""

    query: int
    row: int
    side: str  # whose tokens these are: "train" or "query"
    tokens: list[str]
    scores: list[float]
    special: list[bool]
    layer: int
    form: str
    agrees: list[list[int]]  # for each token, positions in the other side's tokens, strongest first
    references: int = 1  # texts of the other side that the scores are a mean over


@dataclass(frozen=True)
class MarkedWords:
    """Consecutive words of the best rows' prompts or responses, a line of words.jsonl."""

    behaviour: str | None
    part: str  # "prompt" or "response"
    words: str
    rows: int  # best rows that have them
    of_rows: int
    others: int  # drawn rows that have them, of those that are no hit or hits of the fewest queries
    of_others: int

    def __str__(self) -> str:
        best = f"in {self.rows:,} of {self.of_rows:,} best rows"
        return f"{self.words}: {best}, in {self.others:,} of {self.of_others:,} other rows"


Record = TypeVar("Record", Hit, BehaviourHit, TokenScores, MarkedWords)


def read_records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yields the lines of a JSON Lines file as records; none if there is no such file.

    Raises UsageError if a line does not have the fields of the record.
    """
    for number, line in enumerate(each_line(path) if path.is_file() else (), start=1):
        try:
            record = kind(**line)
        except TypeError:
            names = sorted((field.name for field in fields(kind)), key=lambda name: name not in kind.__annotations__)
            expected = ", ".join(names)  # first those that FoundRow does not have
            got = ", ".join(line) if isinstance(line, dict) else repr(line)
            raise UsageError(
                f"Expected line {number} of {path} to have the fields {expected}, but got {got}: another version of "
                "RepT wrote it. Use that version, or run again with another out=."
            ) from None
        yield record
