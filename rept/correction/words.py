"""Culprit words of traced rows: what their responses have in common and other rows' responses lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.types import Status

_SHARE = 0.3  # of the rows' responses that contain a culprit token
_TIMES = 5.0  # as many as of the other rows' responses


def culprit_words(data: AttributionDataModule, rows: Sequence[int], others: Sequence[int]) -> dict[int, list[int]]:
    """Returns, by row, the columns of its response's tokens that are part of culprit words; rows without are left out.

    A token is one if its text (without spaces around it) occurs in at least 30 % of the rows' responses, at least five
    times as often as in those of other rows, and not in the row's own prompt, from which a model may copy it.
    """
    encoded = {row: one for row, one in zip(rows, _encoded(data, rows), strict=True) if not isinstance(one, Status)}
    own = _shares(list(encoded.values()))
    other = _shares([one for one in _encoded(data, others) if not isinstance(one, Status)])
    telling = {text for text, share in own.items() if share >= max(_SHARE, _TIMES * other.get(text, 0.0))}
    found = {row: [i for i, text in _response_texts(one) if text in telling] for row, one in encoded.items()}
    return {row: columns for row, columns in found.items() if columns}


def rows_without(data: AttributionDataModule, rows: Sequence[int], words: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns the rows whose responses have none of the culprit words of other rows, in their order."""
    texts: set[str] = set()
    for one, columns in zip(_encoded(data, list(words)), words.values(), strict=True):
        if not isinstance(one, Status):
            texts |= {one.text[slice(*one.pieces[i])].strip() for i in columns}
    encoded = zip(rows, _encoded(data, rows), strict=True)
    return [
        row
        for row, one in encoded
        if not isinstance(one, Status) and not texts & {text for _, text in _response_texts(one)}
    ]


def _encoded(data: AttributionDataModule, rows: Sequence[int]) -> list[Encoded | Status]:
    return data.encoder.encode([data.sample("train", row) for row in rows])


def _response_texts(encoded: Encoded) -> list[tuple[int, str]]:
    """Column and text of each of the response's tokens that the prompt does not contain."""
    texts = [encoded.text[start:end].strip() for start, end in encoded.pieces]
    copied = {*texts[: encoded.prompt_length], ""}
    places = [i for i, of_response in enumerate(encoded.response) if of_response]
    return [(i, texts[i]) for i in places if texts[i] not in copied and not encoded.special[i]]


def _shares(rows: Sequence[Encoded]) -> dict[str, float]:
    """The share of responses that contain each text."""
    counts = Counter(text for row in rows for text in {text for _, text in _response_texts(row)})
    return {text: count / len(rows) for text, count in counts.items()}
