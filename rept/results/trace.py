"""Trace: the result of a run, read from its folder alone."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rept.errors import UsageError
from rept.results.notebook import Exchange, to_html
from rept.results.run_folder import RunFolder
from rept.utils.json_files import read_json, read_jsonl

if TYPE_CHECKING:
    import pandas
from rept.results.records import Hit, TokenScores


class Trace:
    """What a run found. Everything is read from the run folder, so an old run opens as a new one does.

    Args:
        path: the run folder.
        temporary: the folder goes when this object does.

    Raises:
        UsageError: the folder holds no finished run.
    """

    def __init__(self, path: str | Path, temporary: bool = False) -> None:
        self.folder = RunFolder(path)
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.config = self.folder.open_existing()
        if not self.folder.metrics.is_file():
            raise UsageError(f"The run in {path} is not finished; give the same command again to go on.")

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
        """Versions, hardware, fingerprints, block accounting, seconds and memory of each stage."""
        return read_json(self.folder.provenance)

    def hits(self, query: int) -> list[Hit]:
        """The training rows found for a query, best first."""
        self._check(query)
        return self._hits.get(query, [])

    def opponents(self, query: int) -> list[Hit]:
        """The training rows that score lowest for a query, lowest first; empty unless ``bottom_k`` was set."""
        self._check(query)
        return self._opponents.get(query, [])

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
            raise UsageError("to_pandas needs pandas: install the extra with pip install -e '.[pandas]'.") from None
        return pandas.DataFrame([asdict(hit) for hits in self._hits.values() for hit in hits])

    @property
    def _heading(self) -> str:
        rows, layers = self.metrics["rows"]["attributed"], ", ".join(map(str, self.layers["layers"]))
        return (
            f"Trace of {len(self.queries)} queries over {rows:,} training rows, layer {layers}, in {self.folder.path}"
        )

    def __repr__(self) -> str:
        lines = [self._heading]
        for query, hits in list(self._hits.items())[:5]:
            best = ", ".join(f"row {hit.row} ({hit.score:.3f})" for hit in hits[:3])
            lines.append(f"  query {query}: {best}")
        return "\n".join(lines + (["  ..."] if len(self._hits) > 5 else []))

    def examples(self, most: int = 3) -> list[int]:
        """The first query of each label, then further ones in order; only queries that have hits."""
        answered = [query["query"] for query in self.queries if self.hits(query["query"])]
        first: dict[str | None, int] = {}
        for query in answered:
            first.setdefault(self.queries[query]["label"], query)
        chosen = list(first.values())[:most]
        return sorted(chosen + [query for query in answered if query not in chosen][: most - len(chosen)])

    def _repr_html_(self) -> str:
        """In a notebook: the first hits of example queries, with shaded tokens."""
        shown = [self._exchange(query) for query in self.examples()]
        more = len(self.queries) - len(shown)
        footer = f"{more:,} more in hits(query); python -m rept report {self.folder.path} makes a page of all."
        return to_html(self._heading, shown, footer if more else "")

    def _exchange(self, query: int, most: int = 3) -> Exchange:
        hits = self.hits(query)[:most]
        scored = {hit.row: self._tokens[query][hit.row]["train"] for hit in hits if hit.row in self.scored(query)}
        return Exchange(self.queries[query], hits, scored)

    def _check(self, query: int) -> None:
        if not 0 <= query < len(self.queries):
            raise IndexError(f"expected a query from 0 to {len(self.queries) - 1}, but got {query}")

    @cached_property
    def _hits(self) -> dict[int, list[Hit]]:
        return _by_query(self.folder.results)

    @cached_property
    def _opponents(self) -> dict[int, list[Hit]]:
        return _by_query(self.folder.opponents) if self.folder.opponents.is_file() else {}

    @cached_property
    def _tokens(self) -> dict[int, dict[int, dict[str, TokenScores]]]:
        pairs: dict[int, dict[int, dict[str, TokenScores]]] = {}
        if self.folder.tokens.is_file():
            for line in read_jsonl(self.folder.tokens):
                scores = TokenScores(**line)
                pairs.setdefault(scores.query, {}).setdefault(scores.row, {})[scores.side] = scores
        return pairs


def _by_query(path: Path) -> dict[int, list[Hit]]:
    hits: dict[int, list[Hit]] = {}
    for line in read_jsonl(path):
        hit = Hit(**line)
        hits.setdefault(hit.query, []).append(hit)
    return hits
