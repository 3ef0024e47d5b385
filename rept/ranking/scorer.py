"""The interface of a scorer, which compares the signatures of training rows with those of queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from torch import Tensor

from rept.types import FIELDS


class Scorer(ABC):
    """Scores training rows for queries, one site and layer at a time. High means: this row taught that answer.

    A scorer is a class with ``needs`` and ``__call__``, named in a YAML by its dotted path. One that learns from the
    training rows, such as a whitening, overrides ``fit``; each site and layer then gets its own copy.
    """

    needs: tuple[str, ...] = FIELDS  # fields it reads; checked against the extractor's before any model is loaded
    fit_rows: int | None = None  # training rows that `fit` gets, a uniform sample if there are more; None: all
    fit_seed: int = 0  # of that sample

    def fit(self, train: Iterable[Mapping[str, Tensor]]) -> None:  # noqa: B027 - most scorers learn nothing
        """Learns from the training rows before any are scored.

        With ``fit_rows``, all processes of a run share the reading, and each fits. Without, one of them fits, and the
        others get its attributes.

        Args:
            train: blocks of fields (n D) at one site and layer, which can be iterated several times.
        """

    @abstractmethod
    def __call__(self, train: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> Tensor:
        """Scores (N Q) from fields (N D) of training rows and (Q D) of queries, in their original scale.

        Scores are finite, also in float32: a zero vector gives 0, never NaN. A ranking passes the same ``query`` object
        with each block of rows, and does not change it; so what is computed of the queries may be kept.
        """

    def vectors(self, fields: Mapping[str, Tensor]) -> Tensor | None:
        """Rows (n D) whose inner products are the scores, from fields (n ...) of either side; None where none exist.

        A scorer that has them can be searched through an index (`rept.ranking.faiss_index`).
        """
        return None


def check_pair(train: Tensor, query: Tensor) -> None:
    """Raises ValueError unless the two are matrices (N D) and (Q D) of one width."""
    if train.ndim != 2 or query.ndim != 2 or train.shape[1] != query.shape[1]:
        raise ValueError(
            "Expected training rows (N D) and queries (Q D) of one width D, "
            f"but got {tuple(train.shape)} and {tuple(query.shape)}."
        )
