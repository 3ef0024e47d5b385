"""Culprit words of traced rows: where the words that token scores mark stand in their responses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rept.data.datamodule import AttributionDataModule
from rept.types import Status


def culprit_words(data: AttributionDataModule, rows: Sequence[int], phrases: Iterable[str]) -> dict[int, list[int]]:
    """Returns, by row, the columns of its response's tokens in any of the phrases; rows without are left out.

    Args:
        phrases: words of words.jsonl, compared without case and punctuation.
    """
    wanted = [r"\W+".join(map(re.escape, phrase.split())) for phrase in phrases]
    if not wanted:
        return {}
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(wanted)})(?!\w)", re.IGNORECASE)
    found = {}
    for row, one in zip(rows, data.encoder.encode([data.sample("train", row) for row in rows]), strict=True):
        if isinstance(one, Status):
            continue
        places = [i for i, said in enumerate(one.response) if said and not one.special[i]]
        spans = [match.span() for match in pattern.finditer(one.text, one.pieces[places[0]][0])] if places else []
        columns = [
            i for i in places if any(one.pieces[i][0] < end and start < one.pieces[i][1] for start, end in spans)
        ]
        if columns:
            found[row] = columns
    return found


def distinctive_part(data: AttributionDataModule, phrase: str, rows: Sequence[int], others: Sequence[int]) -> str:
    """Returns the consecutive words of a phrase whose share of ``rows`` most exceeds that of ``others``.

    Of parts with the same excess, the longest. A phrase of words.jsonl may be one of several ways to say its main word.
    """
    words = phrase.split()
    parts = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]

    def share(part: str, of: Sequence[int]) -> float:
        return len(culprit_words(data, of, [part])) / max(1, len(of))

    return max(parts, key=lambda part: (share(part, rows) - share(part, others), len(part)))
