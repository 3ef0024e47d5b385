"""Which texts have the same topic: the share of their informative words that two texts have in common."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"\w+")


class WordOverlap:
    """Overlap of texts with ``references`` (R): ``sum_{w in both} v_w / min(sum_{w in a} v_w, sum_{w in b} v_w)``.

    ``v_w = log((M + 1) / (m_w + 1))`` with m_w = how many of the M texts of ``sample`` contain w, so words that are in
    all of them count nothing. A word counts once in a text, in lower case. The smaller sum divides, so a short text
    whose words are all in a long one overlaps with it completely.
    """

    def __init__(self, references: Sequence[str], sample: Sequence[str]) -> None:
        counts = Counter(word for text in sample for word in set(words(text)))
        self._weight = {word: math.log((len(sample) + 1) / (count + 1)) for word, count in counts.items()}
        self._unseen = math.log(len(sample) + 1)
        found = [set(words(text)) for text in references]
        self._column = {word: i for i, word in enumerate(sorted(set[str]().union(*found)))}
        self._references = self._sparse(found).to_dense().T.contiguous()  # (V R)
        self._total = torch.tensor([self._sum(one) for one in found])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns shares (n R), from 0 to 1; 0 for a text without an informative word."""
        found = [set(words(text)) for text in texts]
        common = torch.sparse.mm(self._sparse(found, weighted=False), self._references)
        smaller = torch.minimum(torch.tensor([self._sum(one) for one in found])[:, None], self._total)
        return torch.where(smaller > 0, common / smaller, 0).clamp(max=1)

    def _value(self, word: str) -> float:
        return self._weight.get(word, self._unseen)

    def _sum(self, found: set[str]) -> float:
        return sum(self._value(word) for word in sorted(found))  # sorted: the same to the last bit in every process

    def _sparse(self, texts: Sequence[set[str]], weighted: bool = True) -> Tensor:
        """Returns (n V): each word's weight, or 1, where a text contains it."""
        known = self._column
        entries = [(i, known[word], word) for i, found in enumerate(texts) for word in found & known.keys()]
        entries.sort()
        place = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T
        value = torch.tensor([self._value(word) if weighted else 1.0 for *_, word in entries])
        return torch.sparse_coo_tensor(place, value, (len(texts), len(self._column)), check_invariants=False)


def words(text: str) -> list[str]:
    """Returns the runs of letters, digits and underscores of a text, in lower case."""
    return _WORD.findall(text.lower())
