"""Ranks the training rows for each behaviour from stored signatures; the model is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.calibration.neighbours import estimate_members
from rept.calibration.two_groups import FEWEST, Estimate
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.query_groups import QueryGroups, group_queries
from rept.data.samples import Sample
from rept.distributed.collectives import barrier, gathered, process
from rept.ranking.behaviour_rule import BehaviourRule
from rept.ranking.behaviour_scorer import BehaviourScorer
from rept.ranking.behaviours import fit_behaviours, rank_behaviours
from rept.ranking.metrics import measures
from rept.ranking.rank import ScoreFile, read_scores
from rept.ranking.topk import Hits
from rept.results.run_folder import RunFolder
from rept.run.query_labels import QueryLabels
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.json_files import write_jsonl
from rept.utils.progress import progress

MEASURES = ("precision@10", "precision@50", "precision@100", "r_precision", "average_precision")  # of one ranking
RATES = (0.05, 0.1, 0.2)  # shares of false rows for which metrics.json says how many rows there are
MOST_FALSE = 0.5  # rows up to this share are listed, so that they can be chosen by it later


@dataclass
class BehaviourScoring:
    """Writes behaviours.jsonl into ``out``. Each process of a run scores its share of the store; rank 0 writes.

    Args:
        keys: the fields in which behaviours are compared: those of the run's scorer, as far as their cosines measure
            similarity.
        sample: returns a training row.
    """

    out: RunFolder
    config: AttributeConfig
    train: AttributionStore
    query: AttributionStore
    known: QueryLabels
    keys: Sequence[Key]
    sample: Callable[[int], Sample]
    device: torch.device | str

    def run(self) -> dict[str, Any]:
        """Returns the measures by behaviour; empty where no query shows one, or the signatures have no directions."""
        names = list(self.groups.behaviours)
        if not names or not self.keys:
            return {}
        part, parts = process()
        scorer = build(self.config.behaviour_scorer, BehaviourScorer)
        paths = [self.out.path / f".scores-behaviours-{i}-of-{parts}" for i in range(parts)]
        asked, clean = self.groups.behaviours, self.groups.clean
        rule = fit_behaviours(scorer, self.train, self.query, asked, clean, self.keys, self.device, True)
        held_out = {name: scores for name, scores in rule.held_out.items() if len(scores) >= FEWEST}
        with ExitStack() as stack:
            scores = stack.enter_context(closing(ScoreFile(paths[part])))
            advance = stack.enter_context(
                progress("Ranking for behaviours", total=len(self.train.attributed), unit="rows")
            )
            hits = rank_behaviours(
                self.train,
                rule,
                len(names),
                top_k=self.config.top_k,
                part=(part, parts),
                device=self.device,
                on_block=lambda rows: advance(rows * parts),
                sinks=[scores],
            )
        barrier(self.config.max_wait)
        hits = Hits.merged(gathered(hits), self.config.top_k)
        if part != 0:
            return {}
        measured = self._measures(paths)
        write_jsonl(self.out.behaviours, self._lines(hits, paths, rule, held_out, measured))
        for path in paths:
            path.unlink()
        return measured

    @cached_property
    def groups(self) -> QueryGroups:
        return group_queries(self.known.by_query, self.config.behaviours)

    def _measures(self, paths: list[Path]) -> dict[str, Any]:
        found: dict[str, Any] = {name: {"queries": len(group)} for name, group in self.groups.behaviours.items()}
        if self.known.labels:
            position = {query: i for i, query in enumerate(self.known.queries)}
            for i, (name, group) in enumerate(self.groups.behaviours.items()):
                same = {row for query in group for row in self.known.same.get(position[query], ())}
                read = [read_scores(paths, i)].__getitem__  # of the only one that is measured
                measured = measures(read, [name], self.known.labels[0], {0: sorted(same)})
                found[name] |= {key: value for key, value in measured["overall"].items() if key in MEASURES}
        return found

    def _lines(
        self,
        hits: Hits,
        paths: list[Path],
        rule: BehaviourRule,
        held_out: Mapping[str, Tensor],
        measured: Mapping[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """The lines of behaviours.jsonl: the first ``top_k`` rows, and those of which at least half may be culprits."""
        for i, (name, asked) in enumerate(self.groups.behaviours.items()):
            row, score = hits.row[i].numpy(), hits.score[i].numpy()
            listed, estimate = np.arange(len(row)), None
            if name in held_out:
                row, score = read_scores(paths, i)
                order = np.lexsort((row, -score))
                row, score = row[order], score[order]
                known = held_out[name].numpy()
                sample = self.known.datamodule.sample
                clean = rule.clean[name].numpy() if name in rule.clean else None
                estimate = estimate_members(row, score, known, self.train, self.query, asked, rule, sample, clean)
                measured[name]["rows"] = {str(rate): int((estimate.false_share <= rate).sum()) for rate in RATES}
                listed = np.flatnonzero(
                    (estimate.false_share <= MOST_FALSE) | (np.arange(len(row)) < self.config.top_k)
                )
            for place in listed.tolist():
                number = int(row[place])
                found = found_row(place, number, score[place], self.sample(number))
                yield {"behaviour": name} | found | (self._estimated(estimate, place) if estimate else {})

    def _estimated(self, estimate: Estimate, place: int) -> dict[str, Any]:
        """What a line has beside its hit where there are enough queries."""
        rate, share = self.config.calibration.rate, float(estimate.false_share[place])
        flagged = {} if rate is None else {"flagged": share <= rate}
        return {"p_value": float(f"{estimate.p_value[place]:.7g}"), "false_share": float(f"{share:.7g}")} | flagged


def found_row(position: int, row: int, score: float, sample: Sample) -> dict[str, Any]:
    """What results.jsonl and behaviours.jsonl have of a found row, at a position from 0."""
    return {
        "rank": position + 1,
        "row": row,
        "score": float(f"{score:.7g}"),
        "label": sample.label,
        "prompt": sample.prompt,
        "response": sample.response,
    }
