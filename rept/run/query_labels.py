"""What labels say about queries and training rows, and which rows are a query itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rept.data.behaviours import behaviour_of
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.types import Status


@dataclass
class QueryLabels:
    """Behaviours of the queries of a ranking and of all training rows."""

    datamodule: AttributionDataModule
    queries: Sequence[int]  # the ranked ones, by their row in the query data

    @property
    def labels(self) -> tuple[list[str | None], list[str | None]] | None:
        """The behaviours of training rows and of the queries; None unless both sides have some."""
        train, query = self._train[0], [behaviour_of(sample.label) for sample in self._asked]
        return (train, query) if any(train) and any(query) else None

    @property
    def by_query(self) -> dict[int, str | None]:
        """The labels of the queries, by query number."""
        return {query: sample.label for query, sample in zip(self.queries, self._asked, strict=True)}

    @property
    def same(self) -> dict[int, list[int]]:
        """By position in ``queries``, the training rows that are the query itself: its prompt and its response."""
        return self._train[1]

    def problems(self) -> dict[str, Any]:
        """Parts of metrics.json, each only where it is not empty; none of them if no query names a behaviour.

        ``missing_labels``: labels of queries that no training row has, with the number of queries, and the labels that
        training rows have, if any. ``not_shown``: queries whose answer does not show the behaviour of their label.
        """
        query = [behaviour_of(sample.label) for sample in self._asked]
        if not any(query):
            return {}
        known = {label for label in self._train[0] if label is not None}
        missing = Counter(label for label in query if label is not None and label not in known)
        shows = {one.label: one.shows for one in self.datamodule.behaviours()}
        source = self.datamodule.source("query")  # without the model's answers: a response here is the expected one
        not_shown = []
        for number, label, asked in zip(self.queries, query, self._asked, strict=True):
            sample = source[number]
            if label in shows and isinstance(sample, Sample) and not shows[label](sample, asked.response or ""):
                not_shown.append(number)
        labels = {"queries": dict(sorted(missing.items())), "training": sorted(known)}
        return ({"missing_labels": labels} if missing else {}) | ({"not_shown": not_shown} if not_shown else {})

    @cached_property
    def _asked(self) -> list[Sample]:
        samples = [self.datamodule.sample("query", query) for query in self.queries]
        return [sample for sample in samples if isinstance(sample, Sample)]  # all: only attributed queries are ranked

    @cached_property
    def _train(self) -> tuple[list[str | None], dict[int, list[int]]]:
        """Behaviours and `same`, from one pass over the training rows, of which no text is kept."""
        texts = [(sample.prompt, sample.response) for sample in self._asked]
        labels: list[str | None] = []
        found: dict[tuple[str, str | None], list[int]] = {text: [] for text in texts}
        source = self.datamodule.source("train")
        for row in range(len(source)):
            sample = source[row]
            labels.append(None if isinstance(sample, Status) else behaviour_of(sample.label))
            if not isinstance(sample, Status) and (rows := found.get((sample.prompt, sample.response))) is not None:
                rows.append(row)
        return labels, {i: found[text] for i, text in enumerate(texts) if found[text]}
