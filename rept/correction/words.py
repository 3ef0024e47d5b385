"""Culprit words of traced rows: where the words that token scores mark stand in their responses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.types import Status


def phrase_pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that finds the phrases as whole words, without case and with any punctuation between words."""
    words = "|".join(r"\W+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def culprit_words(data: AttributionDataModule, rows: Sequence[int], phrases: Iterable[str]) -> dict[int, list[int]]:
    """Returns, by row, the columns of its response's tokens in any of the phrases; rows without are left out.

    Args:
        phrases: words of words.jsonl, compared without case and punctuation.
    """
    return _columns(_encoded(data, rows), phrases)


def distinctive_part(data: AttributionDataModule, phrase: str, rows: Sequence[int], others: Sequence[int]) -> str:
    """Returns the consecutive words of a phrase whose share of ``rows`` most exceeds that of ``others``.

    Of parts with the same excess, the longest. A phrase of words.jsonl may be one of several ways to say its main word.
    """
    words = phrase.split()
    parts = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    inside, outside = _encoded(data, rows), _encoded(data, others)

    def excess(part: str) -> float:
        return len(_columns(inside, [part])) / max(1, len(rows)) - len(_columns(outside, [part])) / max(1, len(others))

    return max(parts, key=lambda part: (excess(part), len(part)))


def _encoded(data: AttributionDataModule, rows: Sequence[int]) -> dict[int, Encoded]:
    encoded = zip(rows, data.encoder.encode([data.sample("train", row) for row in rows]), strict=True)
    return {row: one for row, one in encoded if not isinstance(one, Status)}


def _columns(encoded: Mapping[int, Encoded], phrases: Iterable[str]) -> dict[int, list[int]]:
    wanted = list(phrases)
    if not wanted:
        return {}
    pattern, found = phrase_pattern(wanted), {}
    for row, one in encoded.items():
        places = [i for i, said in enumerate(one.response) if said and not one.special[i]]
        spans = [match.span() for match in pattern.finditer(one.text, one.pieces[places[0]][0])] if places else []
        columns = [
            i for i in places if any(one.pieces[i][0] < end and start < one.pieces[i][1] for start, end in spans)
        ]
        if columns:
            found[row] = columns
    return found
