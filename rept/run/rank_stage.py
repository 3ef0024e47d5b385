"""Ranks stored signatures: hits with their texts, measures and calibration. The model is not needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.calibration.decision import Decision, decide, fewest
from rept.calibration.references import References, load_references
from rept.calibration.statistics import StatisticsCollector
from rept.config.schema import AttributeConfig
from rept.data.behaviours import behaviour_of
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.distributed.collectives import gathered, meet, process
from rept.ranking.histogram import Histogram
from rept.ranking.metrics import measures
from rept.ranking.rank import Ranking, ScoreFile, blocks_share, merge, rank, read_scores
from rept.ranking.scorer import Scorer
from rept.ranking.topk import Hits
from rept.results.near_duplicates import representatives
from rept.results.run_folder import RunFolder
from rept.store.reader import AttributionStore
from rept.types import Key, Side, Status
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

    def run(self) -> dict[int, list[int]]:
        """Returns the rows of the best hits by query, for the queries that were attributed."""
        fields = self.query.read(self.queries, self.query.keys)
        ranking, decision, measured = self._rank(fields)
        if process()[0] == 0:
            self.write(ranking, decision)
            self.out.update_provenance(blocks=_blocks(self.train, fields, ranking.best))
            measured |= self._label_problems()
        if self.config.each:
            measured |= {"each": self._each(fields)}
        self.finish(measured)
        return dict(zip(self.queries, ranking.best.row.tolist(), strict=True))

    @cached_property
    def train(self) -> AttributionStore:
        return AttributionStore(self.folder.store, "train")

    @cached_property
    def query(self) -> AttributionStore:
        return AttributionStore(self.folder.store, "query")

    @cached_property
    def queries(self) -> list[int]:
        """The queries that have a signature, by their row in the query data."""
        return [int(row) for row in self.query.attributed]

    @cached_property
    def labels(self) -> tuple[list[str | None], list[str | None]] | None:
        """The behaviours of training rows and of ranked queries; None unless both sides have some."""
        train, ranked = self._train_rows[0], [behaviour_of(sample.label) for sample in self._asked]
        return (train, ranked) if any(train) and any(ranked) else None

    @property
    def same(self) -> dict[int, list[int]]:
        """By position in `queries`, the training rows that are the query itself: its prompt and its response."""
        return self._train_rows[1]

    @cached_property
    def _asked(self) -> list[Sample]:
        return [self._sample("query", query) for query in self.queries]

    @cached_property
    def _train_rows(self) -> tuple[list[str | None], dict[int, list[int]]]:
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
            scores = stack.enter_context(closing(ScoreFile(paths[part]))) if self.labels else None
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
        meet(self.config.max_wait)
        ranking = merge(gathered(ranking), self.config.top_k, self.config.bottom_k)
        histogram = Histogram.merged(gathered(histogram))
        measured = self._measures(paths) if part == 0 else {}
        meet(self.config.max_wait)  # the next ranking writes its scores into the same files
        measured["scores"] = histogram.as_dict()
        decision, rate = None, self.config.calibration.rate
        if self.references and watch and rate is not None:
            decision = decide(gathered(watch.collected()), ranking.best, rate, self.config.top_k)
            measured["calibration"] = self._calibration(decision, ranking.best, self.references.source, rate)
        return ranking, decision, measured

    def _watch(self, fields: Mapping[Key, Tensor]) -> StatisticsCollector | None:
        if self.references is None:
            return None
        read = {key: block for key, block in fields.items() if key.field in self.scorer.needs}
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
            "stand_out": sum(bool(rows - set(self.same.get(i, ()))) for i, rows in enumerate(flagged)),
            "p_values": dict(zip(self.queries, decision.query.tolist(), strict=True)),
        }

    def _measures(self, paths: list[Path]) -> dict[str, Any]:
        if self.labels is None:
            return {}
        train, query = self.labels
        measured = measures(lambda i: read_scores(paths, i), query, train, self.same)
        for path in paths:
            path.unlink()
        if measured:
            for part in (measured, measured["with_same"]):
                part["queries"] = {"query": self.queries, **part["queries"]}
        return measured

    def _label_problems(self) -> dict[str, Any]:
        """Labels of queries that no training row has, and queries whose answer does not show their label's behaviour.

        Each only where there are any.
        """
        if self.labels is None:
            return {}
        train, query = self.labels
        known = {label for label in train if label is not None}
        missing = Counter(label for label in query if label is not None and label not in known)
        problems: dict[str, Any] = {}
        if missing:
            problems["missing_labels"] = {"queries": dict(sorted(missing.items())), "training": sorted(known)}
        shows = {one.label: one.shows for one in self.datamodule.behaviours()}
        source = self.datamodule.source("query")  # without the model's answers: a response here is the expected one
        not_shown = []
        for number, label, asked in zip(self.queries, query, self._asked, strict=True):
            sample = source[number]
            if label in shows and isinstance(sample, Sample) and not shows[label](sample, asked.response or ""):
                not_shown.append(number)
        return problems | ({"not_shown": not_shown} if not_shown else {})

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
                group = representatives([f"{one.prompt}\n{one.response}" for one in found])
                for position, (row, score, one) in enumerate(zip(rows, scores, found, strict=True)):
                    yield {
                        "query": query,
                        "rank": position + 1,
                        "row": row,
                        "score": float(f"{score:.7g}"),
                        "label": one.label,
                        "prompt": one.prompt,
                        "response": one.response,
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
    return {
        key.path: {
            "train_norm": train.mean_norm(key),
            "query_norm": float(fields[key].norm(dim=1).mean()),
            "share": share,
        }
        for key, share in blocks_share(train, fields, best).items()
    }
