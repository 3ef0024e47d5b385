"""From stored signatures to results: ranking, hits with their text, measures. No model is needed here."""

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
from rept.calibration.statistics import Resemblance
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.distributed.collectives import gathered, meet, process
from rept.ranking.histogram import Histogram
from rept.ranking.metrics import measures
from rept.ranking.rank import Hits, Ranking, ScoreFile, blocks_share, merge, rank, read_scores
from rept.ranking.scorer import Scorer
from rept.results.near_duplicates import representatives
from rept.results.run_folder import RunFolder
from rept.store.reader import AttributionStore
from rept.types import Key, Status
from rept.utils.json_files import write_json, write_jsonl
from rept.utils.progress import progress


@dataclass
class Scoring:
    """Ranks the signatures stored in ``folder``, and writes results, opponents and measures into ``out``.

    Every process of a run scores its share of the store; rank 0 writes.
    """

    folder: RunFolder
    out: RunFolder
    config: AttributeConfig
    datamodule: AttributionDataModule
    scorer: Scorer
    device: torch.device | str = "cpu"

    def run(self) -> dict[int, list[int]]:
        """The rows of the best hits of each query that was attributed."""
        asked = self.query.read(self.queries, self.query.keys)
        ranking, decision, measured = self._rank(asked)
        if process()[0] == 0:
            self.write(ranking, decision)
            self.out.describe(blocks=_blocks(self.train, asked, ranking.best))
        if self.config.each:
            measured |= {"each": self._each(asked)}
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
        return self.query.attributed.tolist()

    @cached_property
    def labels(self) -> tuple[list[str | None], list[str | None]] | None:
        """Labels of the training rows and of the ranked queries; None unless both sides have some."""
        train, query = (self._labels(side) for side in ("train", "query"))
        query = [query[row] for row in self.queries]
        return (train, query) if any(train) and any(query) else None

    def _labels(self, side: str) -> list[str | None]:
        source = self.datamodule.source(side)
        samples = (source[row] for row in range(len(source)))
        return [None if isinstance(sample, Status) else sample.label for sample in samples]

    def _each(self, asked: Mapping[Key, Tensor]) -> dict[str, Any]:
        """Results and measures by each site and layer alone."""
        measured = {}
        for site, layer in sorted({key[:2] for key in asked}):
            alone = {key: block for key, block in asked.items() if key[:2] == (site, layer)}
            ranking, decision, measured[f"{site}/{layer}"] = self._rank(alone)
            if process()[0] == 0:
                self._write_hits(self.out.alone(site, layer), ranking.best, decision)
        return measured

    @cached_property
    def known(self) -> References | None:
        """What the calibration holds the queries against; None: the run is not calibrated."""
        return load_references(self.config.calibration, self.config.seed, self.folder, self.train, self.datamodule)

    def _rank(self, asked: Mapping[Key, Tensor]) -> tuple[Ranking, Decision | None, dict[str, Any]]:
        """The ranking by the mean over the sites and layers asked for, what stands out in it, a histogram of all
        scores, and the measures if there are labels."""
        part, parts = process()
        histogram = Histogram()
        known = self.known
        watch = self._watch(known, asked) if known else None
        paths = [self.out.path / f".scores-{i}-of-{parts}" for i in range(parts)]
        with ExitStack() as stack:
            scores = stack.enter_context(closing(ScoreFile(paths[part]))) if self.labels else None
            advance = stack.enter_context(progress("Ranking", total=len(self.train.attributed), unit="rows"))
            ranking = rank(
                self.train,
                asked,
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
        measured = self._measures(paths) if self.labels and part == 0 else {}
        meet(self.config.max_wait)  # the next ranking writes its scores under the same names
        measured["scores"] = histogram.as_dict()
        decision = None
        if known and watch:
            decision = decide(gathered(watch.share()), ranking.best, self.config.calibration.rate, self.config.top_k)
            measured["calibration"] = self._told(decision, known.source)
        return ranking, decision, measured

    def _watch(self, known: References, asked: Mapping[Key, Tensor]) -> Resemblance:
        read = {key: block for key, block in asked.items() if key.field in self.scorer.needs}
        return Resemblance(self.train, read, known, self.config.top_k, self.device)

    def _told(self, decision: Decision, source: str) -> dict[str, Any]:
        """The calibration as metrics.json has it."""
        rate = self.config.calibration.rate
        return {
            "rate": rate,
            "references": decision.references,
            "source": source,
            "clean_queries": self.config.calibration.references is not None,
            "left_out": decision.left_out,
            "floor": decision.floor,
            "fewest": fewest(len(self.queries), decision.references, rate),
            "queries": len(self.queries),
            "stand_out": int(decision.flagged.any(1).sum()),
            "p_values": dict(zip(self.queries, decision.query.tolist(), strict=True)),
        }

    def _measures(self, paths: list[Path]) -> dict[str, Any]:
        assert self.labels is not None
        train, query = self.labels
        measured = measures(lambda i: read_scores(paths, i), query, train)
        for path in paths:
            path.unlink()
        if measured:
            measured["queries"] = {"query": self.queries, **measured["queries"]}
        return measured

    def write(self, ranking: Ranking, decision: Decision | None = None) -> None:
        """The ranking in place of the one before: its configuration, its hits, and opponents if there are any."""
        self.out.forget_ranking()
        self.out.write_config(self.config)
        self._write_hits(self.out.results, ranking.best, decision)
        if ranking.lowest.row.shape[1]:
            self._write_hits(self.out.opponents, ranking.lowest)

    def finish(self, measured: Mapping[str, Any]) -> None:
        """The measures, with the count of rows: the file that makes the run a finished one."""
        write_json(self.out.metrics, {**measured, "rows": _rows(self.train.status)})

    def _write_hits(self, path: Path, hits: Hits, decision: Decision | None = None) -> None:
        """Each query's hits with their texts."""
        sample = lru_cache(maxsize=4096)(self.datamodule.sample)

        def lines() -> Iterator[dict[str, Any]]:
            for i, query in enumerate(self.queries):
                asked = sample("query", query)
                rows, scores = hits.row[i].tolist(), hits.score[i].tolist()
                samples = [sample("train", row) for row in rows]
                group = representatives([f"{found.prompt}\n{found.response}" for found in samples])
                for position, (row, score, found) in enumerate(zip(rows, scores, samples, strict=True), start=1):
                    yield {
                        "query": query,
                        "rank": position,
                        "row": row,
                        "score": float(f"{score:.7g}"),
                        "label": found.label,
                        "prompt": found.prompt,
                        "response": found.response,
                        "same_as_query": (found.prompt, found.response) == (asked.prompt, asked.response),
                        "group": 1 + group[position - 1],
                    } | (decision.of_hit(i, position - 1) if decision else {})

        write_jsonl(path, lines())


def _rows(status: np.ndarray) -> dict[str, Any]:
    counts = Counter(Status(code) for code in status.tolist())
    return {
        "read": len(status),
        "attributed": sum(count for code, count in counts.items() if code.attributed),
        "cut": counts[Status.CUT],
        "set_aside": {code.reason: count for code, count in sorted(counts.items()) if not code.attributed},
    }


def _blocks(train: AttributionStore, asked: Mapping[Key, Tensor], best: Hits) -> dict[str, dict[str, float]]:
    """Mean norms of each block on both sides, and its share of the cosine of the concatenation over the best hits."""
    return {
        key.path: {
            "train_norm": train.mean_norm(key),
            "query_norm": float(asked[key].norm(dim=1).mean()),
            "share": share,
        }
        for key, share in blocks_share(train, asked, best).items()
    }
