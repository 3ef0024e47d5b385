"""Tokens as shaded text: the strength of shades, the passage to show, and the strongest words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rept.results.records import TokenScores
from rept.utils.text import words_in

LEVELS = 8  # shades of either hue


@dataclass(frozen=True)
class Piece:
    """Text of one or more tokens that is shaded as one."""

    text: str
    score: float  # the strongest of its tokens
    level: int  # from -LEVELS to LEVELS
    special: bool


def scale(scored: TokenScores) -> float:
    """The score that has the strongest shade; never 0.

    Scores of the form ``distinctive`` are from 0 to 1, so that texts in which nothing stands out look weak: 1. Others
    have no unit: the largest absolute score of the tokens that are not special, or of all if there are no others.
    """
    if scored.form == "distinctive":
        return 1.0
    own = [abs(s) for s, special in zip(scored.scores, scored.special, strict=True) if not special]
    return max(own or [abs(s) for s in scored.scores], default=0.0) or 1.0


def level(score: float, largest: float) -> int:
    """The shade of a score: linear, the strongest for ``largest`` and above."""
    return max(-LEVELS, min(LEVELS, round(LEVELS * score / largest)))


def shaded(scored: TokenScores) -> list[Piece]:
    """The text in pieces; an empty token, a further byte of the character before, joins the piece before."""
    largest = scale(scored)
    found: list[Piece] = []
    for text, score, special in zip(scored.tokens, scored.scores, scored.special, strict=True):
        if not text and found:
            before = found.pop()
            strongest = max(before.score, score, key=abs)
            found.append(Piece(before.text, strongest, level(strongest, largest), before.special))
        else:
            found.append(Piece(text, score, level(score, largest), special))
    return found


def excerpt(scored: TokenScores, characters: int = 240) -> tuple[list[Piece], bool, bool]:
    """The consecutive pieces of at most so many characters whose squared positive scores have the largest sum.

    Squared, a few strong tokens count more than many weak ones.

    Returns:
        The pieces (with an arrow, marked special, in place of special tokens between two of them), whether text was
        left out before them, and whether after them.
    """
    parts = [list(run) for special, run in groupby(shaded(scored), key=lambda piece: piece.special) if not special]
    arrow = Piece(" → ", 0.0, 0, special=True)
    pieces = [piece for i, part in enumerate(parts) for piece in ([arrow, *part] if i else part)]
    best, start, length, gain = (0, min(1, len(pieces)), 0.0), 0, 0, 0.0
    for end, piece in enumerate(pieces, start=1):
        length, gain = length + len(piece.text), gain + max(piece.score, 0.0) ** 2
        while length > characters and start < end - 1:
            length, gain = length - len(pieces[start].text), gain - max(pieces[start].score, 0.0) ** 2
            start += 1
        if gain > best[2]:
            best = (start, end, gain)
    first, last = _widened(pieces, best[0], best[1], characters)
    return pieces[first:last], first > 0, last < len(pieces)


def _widened(pieces: Sequence[Piece], first: int, last: int, characters: int) -> tuple[int, int]:
    """Adds what fits before the pieces, from the start of a word, and then after them."""
    spare = characters - sum(len(piece.text) for piece in pieces[first:last])
    while first and spare >= len(pieces[first - 1].text):
        first -= 1
        spare -= len(pieces[first].text)
    while first and first < last - 1 and not pieces[first].text[:1].isspace():
        first += 1
    while last < len(pieces) and spare >= len(pieces[last].text):
        spare -= len(pieces[last].text)
        last += 1
    return first, last


def strongest_words(scored: TokenScores, most: int = 3) -> list[str]:
    """The words with the highest positive score of their tokens, in lower case, without punctuation around them."""
    best: dict[str, float] = {}
    for word, scores in words_in((" " if piece.special else piece.text, piece.score) for piece in shaded(scored)):
        if max(scores) > 0:
            best[word.lower()] = max(*scores, best.get(word.lower(), 0.0))
    return sorted(best, key=lambda word: -best[word])[:most]
