"""BM25, the baseline of text retrieval: rows that share rare words with the query. No model is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rept.data.word_overlap import words
from rept.errors import UsageError
from scorers.base import Scorer

_QUERIES = 256  # at a time: their words make a dense matrix


def decode(rows: Tensor) -> list[str]:
    """The texts of rows of bytes (n W) from `extractors.baselines.text_bytes`, without an incomplete last character."""
    return [bytes(row).rstrip(b"\0").decode("utf-8", errors="ignore") for row in rows.round().to(torch.uint8).tolist()]


class BM25(Scorer):
    """Okapi BM25 (Robertson and Zaragoza 2009), in Lucene's form, whose word weights are never negative.

    ``s(d, q) = sum_{w in q} log(1 + (N - n_w + 1/2) / (n_w + 1/2)) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))``

    with f = how often w is in d, n_w = training rows that contain w; a word that the query repeats counts as often.
    Needs ``extractor=text_bytes``. Memory: one number for each word of the training data.

    Args:
        k1: saturation of repeated words, >= 0; at 0 repetition does not count.
        b: how much the length of a row is normalized away, from 0 to 1.

    Raises:
        UsageError: a setting is out of its range.
    """

    needs = ("text",)

    def __init__(self, k1: float = 1.5, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise UsageError(f"Expected scorer.k1 >= 0 and scorer.b between 0 and 1, but got {k1} and {b}.")
        self.k1, self.b = k1, b
        self._rows_with: Counter[str] = Counter()  # training rows that contain a word
        self._rows = 0
        self._words = 0

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:
        for block in train:
            for text in decode(block["text"]):
                found = words(text)
                self._rows_with.update(set(found))
                self._rows += 1
                self._words += len(found)

    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        queries = [Counter(words(text)) for text in decode(query["text"])]
        column = {word: i for i, word in enumerate(dict.fromkeys(word for counts in queries for word in counts))}
        documents = [words(text) for text in decode(train["text"])]
        counts = _counts([Counter(found) for found in documents], column)  # (N V)
        length = torch.tensor([len(found) for found in documents], dtype=torch.float64) / max(1, self._words)
        row, word = counts.indices()
        often = counts.values()
        damping = self.k1 * (1 - self.b + self.b * length[row] * self._rows)
        weight = torch.tensor([self._weight(word) for word in column], dtype=torch.float64)
        value = weight[word] * often * (self.k1 + 1) / (often + damping)
        weighted = torch.sparse_coo_tensor(counts.indices(), value, counts.shape, check_invariants=False)
        parts = [queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES)]
        scores = [torch.sparse.mm(weighted, _counts(part, column).to_dense().T) for part in parts]
        return torch.cat(scores, dim=1).to(train["text"])

    def _weight(self, word: str) -> float:
        count = torch.tensor(float(self._rows_with[word]), dtype=torch.float64)
        return float(torch.log1p((self._rows - count + 0.5) / (count + 0.5)))


def _counts(texts: list[Counter[str]], column: Mapping[str, int]) -> Tensor:
    """How often each text (n) contains each word (V), sparse (n V) float64."""
    entries = [(i, column[w], c) for i, counts in enumerate(texts) for w, c in counts.items() if w in column]
    place = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T
    often = torch.tensor([entry[2] for entry in entries], dtype=torch.float64)
    return torch.sparse_coo_tensor(place, often, (len(texts), len(column)), check_invariants=False).coalesce()
