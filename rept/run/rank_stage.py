"""Ranks stored signatures: hits with their texts, measures and calibration. The model is not needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.calibration.decision import Decision, decide, fewest
from rept.calibration.references import References, load_references
from rept.calibration.statistics import StatisticsCollector
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.distributed.collectives import barrier, gathered, process
from rept.ranking.histogram import Histogram
from rept.ranking.metrics import measures
from rept.ranking.rank import Ranking, ScoreFile, blocks_share, merge, rank, read_scores
from rept.ranking.scorer import Scorer
from rept.ranking.topk import Hits
from rept.results.near_duplicates import representatives
from rept.results.run_folder import RunFolder
from rept.run.behaviour_stage import BehaviourScoring, found_row
from rept.run.query_labels import QueryLabels
from rept.store.reader import AttributionStore
from rept.types import TEXT, Key, Side, Status
from rept.utils.json_files import write_json, write_jsonl
from rept.utils.progress import progress


@dataclass
class Scoring:
    """Ranks the signatures stored in ``folder``, and writes results, opponents and measures into ``out``.

    Each process of a run scores its share of the store; rank 0 writes.
    """

    folder: RunFolder
    out: RunFolder
    config: AttributeConfig
    datamodule: AttributionDataModule
    scorer: Scorer
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.train, self.query = (AttributionStore(self.folder.store, side) for side in ("train", "query"))
        self.queries = [int(row) for row in self.query.attributed]  # those that have a signature, by their row
        self.known = QueryLabels(self.datamodule, self.queries)
        self.comparable: bool = self.folder.read_provenance().get("comparable", True)

    def run(self) -> dict[int, list[int]]:
        """Returns the rows of the best hits by query, for the queries that were attributed."""
        fields = self.query.read(self.queries, self.query.keys)
        ranking, decision, measured = self._rank(fields)
        if process()[0] == 0:
            self.write(ranking, decision)
            self.out.update_provenance(blocks=_blocks(self.train, fields, ranking.best))
            measured |= self.known.problems()
        sample = partial(self._sample, "train")
        compared = [key for key in fields if self.comparable and key.field in self.scorer.needs and key.field != TEXT]
        behaviours = BehaviourScoring(
            self.out, self.config, self.train, self.query, self.known, compared, sample, self.device
        )
        if found := behaviours.run():
            measured |= {"behaviours": found}
        if self.config.each:
            measured |= {"each": self._each(fields)}
        self.finish(measured)
        return dict(zip(self.queries, ranking.best.row.tolist(), strict=True))

    @cached_property
    def references(self) -> References | None:
        """The references of the calibration; None if the run is not calibrated."""
        calibration, seed = self.config.calibration, self.config.seed
        return load_references(calibration, seed, self.folder, self.train, self.datamodule)

    def _each(self, fields: Mapping[Key, Tensor]) -> dict[str, Any]:
        """Writes the results of each site and layer alone; returns their measures."""
        measured = {}
        for site, layer in sorted({(key.site, key.layer) for key in fields}):
            alone = {key: block for key, block in fields.items() if (key.site, key.layer) == (site, layer)}
            ranking, decision, measured[f"{site}/{layer}"] = self._rank(alone)
            if process()[0] == 0:
                self._write_hits(self.out.results_of(site, layer), ranking.best, decision)
        return measured

    def _rank(self, fields: Mapping[Key, Tensor]) -> tuple[Ranking, Decision | None, dict[str, Any]]:
        """The ranking by the mean over the sites and layers of ``fields``, its calibration, and its measures."""
        part, parts = process()
        histogram, watch = Histogram(), self._watch(fields)
        paths = [self.out.path / f".scores-{i}-of-{parts}" for i in range(parts)]
        with ExitStack() as stack:
            scores = stack.enter_context(closing(ScoreFile(paths[part]))) if self.known.labels else None
            advance = stack.enter_context(progress("Ranking", total=len(self.train.attributed), unit="rows"))
            ranking = rank(
                self.train,
                fields,
                self.scorer,
                top_k=self.config.top_k,
                bottom_k=self.config.bottom_k,
                device=self.device,
                part=(part, parts),
                on_block=lambda rows: advance(rows * parts),
                sinks=[histogram, scores] if scores else [histogram],
                watch=watch,
            )
        barrier(self.config.max_wait)
        ranking = merge(gathered(ranking), self.config.top_k, self.config.bottom_k)
        histogram = Histogram.merged(gathered(histogram))
        measured = self._measures(paths) if part == 0 else {}
        barrier(self.config.max_wait)  # the next ranking writes its scores into the same files
        measured["scores"] = histogram.as_dict()
        decision, rate = None, self.config.calibration.rate
        if self.references and watch and rate is not None:
            decision = decide(gathered(watch.collected()), ranking.best, rate, self.config.top_k)
            measured["calibration"] = self._calibration(decision, ranking.best, self.references.source, rate)
        return ranking, decision, measured

    def _watch(self, fields: Mapping[Key, Tensor]) -> StatisticsCollector | None:
        if self.references is None:
            return None
        read = {key: block for key, block in fields.items() if key.field in self.scorer.needs and key.field != TEXT}
        return StatisticsCollector(self.train, read, self.references, self.config.top_k, self.device)

    def _calibration(self, decision: Decision, best: Hits, source: str, rate: float) -> dict[str, Any]:
        """The calibration as in metrics.json; a query does not stand out by a row that is the query itself."""
        flagged = [set(rows[mask].tolist()) for rows, mask in zip(best.row, decision.flagged, strict=True)]
        return {
            "rate": rate,
            "references": decision.references,
            "source": source,
            "clean_queries": self.config.calibration.references is not None,
            "left_out": decision.left_out,
            "floor": decision.floor,
            "fewest": fewest(len(self.queries), decision.references, rate),
            "queries": len(self.queries),
            "stand_out": sum(bool(rows - set(self.known.same.get(i, ()))) for i, rows in enumerate(flagged)),
            "p_values": dict(zip(self.queries, decision.query.tolist(), strict=True)),
        }

    def _measures(self, paths: list[Path]) -> dict[str, Any]:
        if self.known.labels is None:
            return {}
        train, query = self.known.labels
        read = partial(read_scores, paths)
        measured = measures(read, query, train, self.known.same)
        measured["overall"] |= self.datamodule.published_measures(read, self.queries)
        for part in (measured, measured["with_same"]):
            part["queries"] = {"query": self.queries, **part["queries"]}
        for path in paths:
            path.unlink()
        return measured

    def write(self, ranking: Ranking, decision: Decision | None = None) -> None:
        """Replaces the previous ranking: its configuration, its hits, and opponents if there are any."""
        if self.out.path != self.folder.path:
            self.out.copy_provenance(self.folder)
        self.out.remove_ranking()
        self.out.write_config(self.config)
        self._write_hits(self.out.results, ranking.best, decision)
        if ranking.lowest.row.shape[1]:
            self._write_hits(self.out.opponents, ranking.lowest)

    def finish(self, measured: Mapping[str, Any]) -> None:
        """Writes the measures and the counts of rows: a run with this file is finished."""
        write_json(self.out.metrics, {**measured, "rows": _row_counts(self.train.status)})

    def _write_hits(self, path: Path, hits: Hits, decision: Decision | None = None) -> None:
        sample = lru_cache(maxsize=4096)(self._sample)

        def lines() -> Iterator[dict[str, Any]]:
            for i, query in enumerate(self.queries):
                asked = sample("query", query)
                rows, scores = hits.row[i].tolist(), hits.score[i].tolist()
                found = [sample("train", row) for row in rows]
                group = representatives([one.text for one in found])
                for position, (row, score, one) in enumerate(zip(rows, scores, found, strict=True)):
                    yield {
                        "query": query,
                        **found_row(position, row, score, one),
                        "same_as_query": (one.prompt, one.response) == (asked.prompt, asked.response),
                        "group": group[position] + 1,
                    } | (decision.of_hit(i, position) if decision else {})

        write_jsonl(path, lines())

    def _sample(self, side: Side, row: int) -> Sample:
        sample = self.datamodule.sample(side, row)
        assert isinstance(sample, Sample)  # only attributed rows are ranked
        return sample


def _row_counts(status: np.ndarray) -> dict[str, Any]:
    counts = Counter(Status(code) for code in status.tolist())
    return {
        "read": len(status),
        "attributed": sum(count for code, count in counts.items() if code.attributed),
        "cut": counts[Status.CUT],
        "set_aside": {code.reason: count for code, count in sorted(counts.items()) if not code.attributed},
    }


def _blocks(train: AttributionStore, fields: Mapping[Key, Tensor], best: Hits) -> dict[str, dict[str, float]]:
    """Mean norms of each block on both sides, and its share of the cosine of the concatenation over the best hits."""
    fields = {key: block for key, block in fields.items() if key.field != TEXT}
    return {
        key.path: {
            "train_norm": train.mean_norm(key),
            "query_norm": float(fields[key].double().norm(dim=1).mean()),
            "share": share,
        }
        for key, share in blocks_share(train, fields, best).items()
    }
