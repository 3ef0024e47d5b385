"""What a run found: the few figures and examples that the page begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rept.data.behaviours import behaviour_of
from rept.results.records import Hit, MarkedWords
from rept.results.shading import Piece, excerpt
from rept.results.trace import Trace
from rept.utils.text import format_count

FIRST = 10  # a row counts for a query when it is among its first ten hits


@dataclass(frozen=True)
class BehaviourFindings:
    """The queries of one behaviour (without labels, all of them), and the clearest of them as an example."""

    label: str | None
    queries: int
    matched: int | None  # queries of `shown` whose best hit has their label; None without labels
    shown: int  # queries whose answer shows the behaviour, or of which this is not known
    stand_out: int | None  # queries for which a row stands out; None in a run that is not calibrated
    words: list[MarkedWords]
    example: dict[str, Any]  # as in queries.jsonl
    hit: Hit  # the example's best one
    pieces: list[Piece]  # an excerpt of the hit, with shades; empty without token scores
    cut_before: bool
    cut_after: bool


@dataclass(frozen=True)
class Culprit:
    """A training row that was found often."""

    hit: Hit  # the one with its highest score
    count: int  # queries that have it among their first ten hits
    score: float  # mean over those hits


class Findings:
    """Everything that the top of the page says."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.best = {query: hit for query in trace.answered if (hit := trace.best(query))}  # never the query itself
        self.labels = {query: behaviour_of(trace.queries[query]["label"]) for query in self.best}
        self.calibrated = trace.metrics.get("calibration")  # its figures; None if the run is not calibrated

    @cached_property
    def labelled(self) -> bool:
        """Whether the best hits can be compared with the queries' labels."""
        hit_labels = any(hit.label is not None for hit in self.best.values())
        return hit_labels and any(label is not None for label in self.labels.values())

    @cached_property
    def rows_found(self) -> int:
        """Different training rows among the first ten hits of all queries."""
        return len(self._first_hits)

    @cached_property
    def headline(self) -> str:
        """The finding in one sentence; in a calibrated run, what stands out."""
        if not self.best:
            return "No query could be traced."
        total = format_count(len(self.best), "query")
        if known := self.calibrated:
            rate, references = f"{known['rate']:.3g}", format_count(known["references"], "reference")
            out = f"For {len(self.standing_out):,} of {total}, a training row stands out"
            return f"{out} at a false discovery rate of {rate}, against {references}."
        if self.leads:
            return self.leads
        share = sum(one.count for one in self.culprits) / sum(map(len, self._first_hits.values()))
        rows = format_count(len(self.culprits), "training row")
        return f"{share:.0%} of the first hits of {total} come from {rows}."

    @cached_property
    def standing_out(self) -> set[int]:
        """The queries for which a training row other than the query itself is flagged."""
        return {query for query in self.best if any(h.flagged and not h.same_as_query for h in self.trace.hits(query))}

    @cached_property
    def calibration(self) -> str:
        """The rate and the references behind "stands out", and what a p-value is; empty if not calibrated."""
        if not (known := self.calibrated):
            return ""
        return (
            f"Each query is compared with {format_count(known['references'], 'reference')} ({known['source']}). The "
            "p-value of a hit is the share of these references, itself included, for which a row stands out as far as "
            f"this one, so a small value is rare by chance and none is below {known['floor']:.2g}. At most "
            f"{known['rate']:.3g} of the queries for which a row stands out are expected to be false finds."
        )

    @cached_property
    def leads(self) -> str:
        """How many queries lead to rows of their own label; empty without labels or answers that show them."""
        shown, matched = sum(one.shown for one in self.behaviours), sum(one.matched or 0 for one in self.behaviours)
        if not self.labelled or not shown:
            return ""
        lead = "leads straight to training rows of its" if shown == 1 else "lead straight to training rows of their"
        return f"{matched:,} of {format_count(shown, 'query')} {lead} own behaviour."

    @cached_property
    def behaviours(self) -> list[BehaviourFindings]:
        """One for each behaviour among the queries' labels, most queries first."""
        if not self.labelled:
            return [self._behaviour(None, list(self.best))] if self.best else []
        counts = Counter(label for label in self.labels.values() if label is not None)
        return [
            self._behaviour(label, [query for query in self.best if self.labels[query] == label])
            for label, _ in counts.most_common()
        ]

    @cached_property
    def culprits(self) -> list[Culprit]:
        """The ten rows that are among the first ten hits of most queries; of equals, the higher mean score first."""
        culprits = [
            Culprit(max(hits, key=lambda hit: hit.score), len(hits), sum(hit.score for hit in hits) / len(hits))
            for hits in self._first_hits.values()
        ]
        return sorted(culprits, key=lambda one: (-one.count, -one.score, one.hit.row))[:FIRST]

    @cached_property
    def _first_hits(self) -> dict[int, list[Hit]]:
        """The first ten hits of all queries, by row."""
        found: dict[int, list[Hit]] = {}
        for query in self.best:
            for hit in [hit for hit in self.trace.hits(query) if not hit.same_as_query][:FIRST]:
                found.setdefault(hit.row, []).append(hit)
        return found

    def _behaviour(self, label: str | None, queries: Sequence[int]) -> BehaviourFindings:
        example = self.trace.clearest(queries)
        scored = self.trace.best_tokens(example).get("train")
        pieces, cut_before, cut_after = excerpt(scored) if scored else ([], False, False)
        shown = [query for query in queries if query not in self.trace.not_shown]
        return BehaviourFindings(
            label=label,
            queries=len(queries),
            matched=sum(self.best[query].label == label for query in shown) if self.labelled else None,
            shown=len(shown),
            stand_out=len(self.standing_out & set(queries)) if self.calibrated else None,
            words=self.trace.marked_words(label),
            example=self.trace.queries[example],
            hit=self.best[example],
            pieces=pieces,
            cut_before=cut_before,
            cut_after=cut_after,
        )
