"""The records of a result: hits and token scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A training row found for a query; ``rank`` counts from 1, ``row`` from 0."""

    query: int
    rank: int
    row: int
    score: float
    label: str | None
    prompt: str
    response: str
    same_as_query: bool  # its prompt and response are the query's own
    p_value: float | None = None  # where the run was calibrated
    flagged: bool | None = None  # it stands out at the calibration's rate
    group: int  # near-duplicates share a number: the rank of the best of them


@dataclass(frozen=True)
class TokenScores:
    """One side of a pair, token by token; ``"".join(tokens)`` is the rendered text."""

    query: int
    row: int
    side: str  # whose tokens these are: "train" or "query"
    tokens: list[str]
    scores: list[float]
    special: list[bool]
    layer: int
    form: str
    agrees: list[list[int]]  # for each token, positions in the other side's tokens, strongest first
