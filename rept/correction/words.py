"""Culprit words of traced rows: what their responses have in common and other rows' responses lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.types import Status

_SHARE = 0.3  # of the rows' responses that contain a culprit token
_TIMES = 5.0  # as many as of the other rows' responses


def culprit_words(data: AttributionDataModule, rows: Sequence[int], others: Sequence[int]) -> dict[int, list[int]]:
    """Returns, by row, the columns of its response's tokens that are part of culprit words; rows without are left out.

    A token is one if it occurs in at least 30 % of the rows' responses, at least five times as often as in those of
    other rows, and not in the row's own prompt, from which a model may copy it.
    """
    encoded = {row: one for row, one in zip(rows, _encoded(data, rows), strict=True) if not isinstance(one, Status)}
    own = _shares(list(encoded.values()))
    other = _shares([one for one in _encoded(data, others) if not isinstance(one, Status)])
    telling = {token for token, share in own.items() if share >= max(_SHARE, _TIMES * other.get(token, 0.0))}
    found = {row: _columns(one, telling) for row, one in encoded.items()}
    return {row: columns for row, columns in found.items() if columns}


def _encoded(data: AttributionDataModule, rows: Sequence[int]) -> list[Encoded | Status]:
    return data.encoder.encode([data.sample("train", row) for row in rows])


def _columns(encoded: Encoded, telling: set[int]) -> list[int]:
    copied = set(encoded.input_ids[: encoded.prompt_length])
    ids = enumerate(encoded.input_ids)
    return [
        i for i, token in ids if i >= encoded.prompt_length and token in telling - copied and not encoded.special[i]
    ]


def _shares(rows: Sequence[Encoded]) -> dict[int, float]:
    """The share of responses that contain each token outside the row's prompt."""
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(set(row.input_ids[row.prompt_length :]) - set(row.input_ids[: row.prompt_length]))
    return {token: count / len(rows) for token, count in counts.items()}
