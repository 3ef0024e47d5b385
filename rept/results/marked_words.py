"""Words that token scores mark in the best rows of a behaviour, and that other rows do not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rept.utils.text import words_in

LONGEST = 8  # words of a phrase
MOST = 4  # phrases of a behaviour, in prompts and in responses each


def token_words(tokens: Sequence[str], marked: Sequence[bool]) -> list[tuple[str, bool]]:
    """Returns the words of consecutive tokens, without case and punctuation, and whether a token in them is marked."""
    return [(word.casefold(), any(marks)) for word, marks in words_in(zip(tokens, marked, strict=True))]


def marked_phrases(
    best: Sequence[Sequence[tuple[str, bool]]], others: Sequence[Sequence[str]]
) -> list[tuple[str, int, int]]:
    """Returns phrases, the rows of ``best`` that have each, and those of ``others``; most marked words first.

    A phrase is marked in a row if all its words are. It is kept if it is marked in at least a tenth of the best rows,
    in at least half of those that have it, and if it is at least three times as frequent there as in other rows. A
    phrase that is part of a kept one, or contains one, is left out.

    Args:
        best: the words of each best row, and whether each is marked.
        others: the words of each of the other rows.
    """
    marked = Counter(phrase for row in best for phrase in set(_phrases(row)))
    texts = [_padded([word for word, _ in row]) for row in best]
    other_texts = [_padded(row) for row in others]
    kept: list[tuple[str, int, int]] = []
    for phrase, count in sorted(marked.items(), key=lambda one: (-one[1] * len(one[0].split()), one[0])):
        own = _padded([phrase])
        overlap = any(own in one or one in own for one in (_padded([other]) for other, *_ in kept))
        if overlap or count < max(1, len(best) / 10):
            continue
        rows, elsewhere = (sum(own in text for text in part) for part in (texts, other_texts))
        if 2 * count >= rows and more_frequent(rows, len(best), elsewhere, len(others)):
            kept.append((phrase, rows, elsewhere))
        if len(kept) == MOST:
            break
    return kept


def more_frequent(count: int, of: int, others: int, of_others: int) -> bool:
    """Whether words of so many rows are at least three times as frequent as in others; half a row is added there."""
    return count * (of_others + 1) >= 3 * (others + 0.5) * of


def _phrases(row: Sequence[tuple[str, bool]]) -> Iterator[str]:
    """Every phrase of consecutive marked words."""
    for mark, run in groupby(row, key=lambda one: one[1]):
        words = [word for word, _ in run] if mark else []
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                yield " ".join(words[start:end])


def _padded(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
