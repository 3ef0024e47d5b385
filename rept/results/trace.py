"""Trace: the result of a run, read from its folder alone."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rept.errors import UsageError
from rept.results.notebook import QueryWithHits, to_html
from rept.results.records import BehaviourHit, Hit, MarkedWords, Record, TokenScores, read_records
from rept.results.run_folder import RunFolder
from rept.results.shading import strongest_words
from rept.utils.json_files import read_json, read_jsonl
from rept.utils.text import format_count

if TYPE_CHECKING:
    import pandas

K = TypeVar("K")


class Trace:
    """What a run found, read from the run folder alone.

    Args:
        path: the run folder.
        temporary: delete the folder when this object is deleted.

    Raises:
        UsageError: there is no finished run in the folder.
    """

    def __init__(self, path: str | Path, temporary: bool = False) -> None:
        self.folder = RunFolder(path)
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.config = self.folder.open_existing()
        if not self.folder.metrics.is_file() or not self.folder.results.is_file():
            raise UsageError(f"The run in {path} is not finished; give the same command again to resume it.")

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """The queries, one dictionary each: query, prompt, response, generated, label, status."""
        return read_jsonl(self.folder.queries)

    @cached_property
    def layers(self) -> dict[str, Any]:
        """How the layer was chosen: strategy, layers, curve, agreement, reason."""
        return read_json(self.folder.layers)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Measures (only where labels are known) and the count of rows."""
        return read_json(self.folder.metrics)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, hardware, fingerprints, block norms, seconds and memory of each stage."""
        return read_json(self.folder.provenance)

    def hits(self, query: int) -> list[Hit]:
        """The training rows found for a query, best first."""
        self._check(query)
        return self._hits.get(query, [])

    def best(self, query: int) -> Hit | None:
        """The first hit that is not the query itself; None if there is none."""
        return next((hit for hit in self.hits(query) if not hit.same_as_query), None)

    @cached_property
    def not_shown(self) -> set[int]:
        """Queries whose answer does not show the behaviour of their label, where the data can decide this."""
        return set(self.metrics.get("not_shown", ()))

    def opponents(self, query: int) -> list[Hit]:
        """The training rows that score lowest for a query, lowest first; empty unless ``bottom_k`` was set."""
        self._check(query)
        return self._opponents.get(query, [])

    @property
    def behaviours(self) -> list[str]:
        """The names of the behaviours that rows were ranked for."""
        return list(self._behaviours)

    def behaviour(self, name: str) -> list[BehaviourHit]:
        """The training rows found for all queries of a behaviour together, best first.

        Raises:
            UsageError: no rows were ranked for a behaviour of that name.
        """
        if name not in self._behaviours:
            known = ", ".join(self._behaviours) or "none"
            raise UsageError(
                f"{self.folder.path} has no ranking for the behaviour {name!r}; it has: {known}. Behaviours are the "
                "labels of the queries, or what behaviours=FILE names."
            )
        return self._behaviours[name]

    def scored(self, query: int) -> list[int]:
        """The rows whose pair with the query was scored token by token, in the order of their lines."""
        return list(self._tokens.get(query, {}))

    def tokens(self, query: int, row: int) -> dict[str, TokenScores]:
        """Token scores of a scored pair: ``{"train": ..., "query": ...}``.

        Raises:
            KeyError: the pair was not scored token by token.
        """
        if row not in self._tokens.get(query, {}):
            known = sorted(self.scored(query))
            raise KeyError(f"no token scores for query {query} and row {row}; rows scored for this query: {known}")
        return self._tokens[query][row]

    def to_pandas(self) -> pandas.DataFrame:
        """All hits as a table, one row a hit (extra ``pandas``).

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas: pip install pandas (extra `pandas`).") from None
        return pandas.DataFrame([{"query": hit.query} | asdict(hit) for hits in self._hits.values() for hit in hits])

    @cached_property
    def answered(self) -> list[int]:
        """The queries that have hits."""
        return [query["query"] for query in self.queries if self.hits(query["query"])]

    def examples(self, most: int = 3) -> list[int]:
        """Queries to show first: the clearest of each label, labels with most queries first, then others in order."""
        labels: dict[str | None, list[int]] = {}
        for query in self.answered:
            labels.setdefault(self.queries[query]["label"], []).append(query)
        chosen = [self.clearest(queries) for queries in sorted(labels.values(), key=len, reverse=True)[:most]]
        return sorted(chosen + [query for query in self.answered if query not in chosen][: most - len(chosen)])

    def clearest(self, queries: Sequence[int]) -> int:
        """The query whose best hit (not itself) represents those of all given queries, which have hits, best.

        In this order: the hit has the query's label, it has token scores, its strongest words are frequent among the
        strongest words of all best hits, its score is high.
        """
        words = Counter(word for query in queries for word in self.words(query))

        def clarity(query: int) -> tuple[bool, bool, int, float]:
            best = self.best(query) or self.hits(query)[0]
            own_label = best.label == self.queries[query]["label"] and query not in self.not_shown
            return own_label, best.row in self.scored(query), sum(words[w] for w in self.words(query)), best.score

        return max(queries, key=clarity)

    def words(self, query: int) -> list[str]:
        """The strongest words of a query's best hit; empty without token scores."""
        tokens = self.best_tokens(query).get("train")
        return strongest_words(tokens) if tokens else []

    def marked_words(self, label: str | None) -> list[MarkedWords]:
        """What token scores mark in the best rows of the queries of a label; empty without token scores."""
        return self._marked_words.get(label, [])

    def best_tokens(self, query: int) -> dict[str, TokenScores]:
        """Token scores of a query with its best hit, by side; empty where there are none."""
        best = self.best(query)
        return self._tokens.get(query, {}).get(best.row, {}) if best else {}

    @property
    def _heading(self) -> str:
        rows, layers = self.metrics["rows"]["attributed"], ", ".join(map(str, self.layers["layers"]))
        counts = f"{format_count(len(self.queries), 'query')} over {format_count(rows, 'training row')}"
        return f"Trace of {counts}, layer {layers}, in {self.folder.path}"

    def __repr__(self) -> str:
        lines = [self._heading]
        for query, hits in list(self._hits.items())[:5]:
            best = ", ".join(f"row {hit.row} ({hit.score:.3f})" for hit in hits[:3])
            lines.append(f"  query {query}: {best}")
        return "\n".join(lines + (["  ..."] if len(self._hits) > 5 else []))

    def _repr_html_(self) -> str:
        """In a notebook: the first hits of example queries, with shaded tokens."""
        shown = [self._with_hits(query) for query in self.examples()]
        more = len(self.queries) - len(shown)
        footer = f"{more:,} more in hits(query); python -m rept report {self.folder.path} makes a page of all."
        return to_html(self._heading, shown, footer if more else "")

    def _with_hits(self, query: int, most: int = 3) -> QueryWithHits:
        hits = self.hits(query)[:most]
        tokens = {hit.row: self.tokens(query, hit.row)["train"] for hit in hits if hit.row in self.scored(query)}
        return self.queries[query], hits, tokens

    def _check(self, query: int) -> None:
        if not 0 <= query < len(self.queries):
            raise IndexError(f"expected a query from 0 to {len(self.queries) - 1}, but got {query}")

    @cached_property
    def _hits(self) -> dict[int, list[Hit]]:
        return _grouped(self.folder.results, Hit, lambda hit: hit.query)

    @cached_property
    def _opponents(self) -> dict[int, list[Hit]]:
        return _grouped(self.folder.opponents, Hit, lambda hit: hit.query)

    @cached_property
    def _behaviours(self) -> dict[str, list[BehaviourHit]]:
        return _grouped(self.folder.behaviours, BehaviourHit, lambda hit: hit.behaviour)

    @cached_property
    def _marked_words(self) -> dict[str | None, list[MarkedWords]]:
        return _grouped(self.folder.words, MarkedWords, lambda words: words.behaviour)

    @cached_property
    def _tokens(self) -> dict[int, dict[int, dict[str, TokenScores]]]:
        pairs: dict[int, dict[int, dict[str, TokenScores]]] = {}
        for scores in read_records(self.folder.tokens, TokenScores):
            pairs.setdefault(scores.query, {}).setdefault(scores.row, {})[scores.side] = scores
        return pairs


def _grouped(path: Path, kind: type[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """The records of a file by a key, in their order; empty if there is no such file."""
    found: dict[K, list[Record]] = {}
    for record in read_records(path, kind):
        found.setdefault(key(record), []).append(record)
    return found
