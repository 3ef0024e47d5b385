"""Behaviour rankings of finished runs, by number of queries, and how many rows they choose.

    python benchmarks/behaviours.py runs/demo [MORE ...] [--draws 10] [--sizes 3 5 20] [--layer 6] [--scorers]

For each behaviour of each run, draws of some of its queries, and all of them: the observed share of false rows and the
share of culprits found at stated rates, and whether anything is chosen once all of the behaviour's rows are taken out
of the training data (or there never were any). The last lines sum up all tries with five queries and more.
``--scorers`` adds the average precision of all behaviour scorers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.stores import Without
from rept.calibration.neighbours import estimate_members
from rept.calibration.two_groups import FEWEST
from rept.data.samples import Sample
from rept.ranking.behaviour_scorer import BehaviourScorer
from rept.ranking.behaviours import fit_behaviours
from rept.ranking.metrics import average_precision
from rept.results.run_folder import RunFolder
from rept.run.query_labels import QueryLabels
from rept.run.rescore import stored_data
from rept.store.reader import AttributionStore, Block
from rept.types import TEXT, Key, Side, Status
from scorers.adaptive import Adaptive
from scorers.centroid import Centroid
from scorers.fisher import Fisher

RATES = (0.05, 0.1, 0.2)
CLEAR = 0.95  # average precision from which on the culprits should be found


class InMemory(Without):
    """One side of a store in memory, without some of its rows."""

    def __init__(self, store: AttributionStore, keys: Sequence[Key], left_out: Sequence[int] | np.ndarray = ()) -> None:
        super().__init__(store, left_out)
        self._fields = store.read(np.arange(store.rows), keys)

    def read(self, rows: Sequence[int] | np.ndarray, keys: Sequence[Key], together: bool = False) -> dict[Key, Tensor]:
        return {key: self._fields[key][np.asarray(rows, dtype=np.int64)] for key in keys}

    def blocks(self, keys: Sequence[Key], *arguments: Any, **settings: Any) -> Iterator[Block]:
        yield Block(torch.from_numpy(self.attributed), self.read(self.attributed, keys))


@dataclass(frozen=True)
class Try:
    """What one draw of queries found."""

    queries: int
    precision: list[float]  # average precision by scorer, the default first; empty where there are no culprits
    false: list[float]  # by rate
    found: list[float]  # by rate; empty where there are no culprits
    chosen: list[int]  # rows, by rate


def tried(
    train: AttributionStore,
    query: AttributionStore,
    asked: Sequence[int],
    culprits: np.ndarray,
    keys: Sequence[Key],
    scorers: Sequence[BehaviourScorer],
    sample: Callable[[Side, int], Sample | Status],
) -> Try:
    precision, share, correct = [], np.ones(0), np.zeros(0, dtype=bool)
    for scorer in scorers:
        rule = fit_behaviours(scorer, train, query, {"b": list(asked)}, [], keys)
        row = train.attributed
        score = rule(train.read(row, keys))[:, 0].numpy()
        order = np.lexsort((row, -score))
        row, score = row[order], score[order]
        precision.append(average_precision(1 + np.flatnonzero(np.isin(row, culprits))))
        if len(asked) >= FEWEST and not len(share):
            held_out = rule.held_out["b"].numpy()
            share = estimate_members(row, score, held_out, train, query, asked, rule, sample).false_share
            correct = np.isin(row, culprits)
    cuts = [share <= rate for rate in RATES]
    false = [float((~correct[cut]).mean()) if cut.any() else 0.0 for cut in cuts]
    if not np.isin(train.attributed, culprits).any():
        return Try(len(asked), [], false, [], [int(cut.sum()) for cut in cuts])
    found = [float(correct[cut].sum() / len(culprits)) for cut in cuts]
    return Try(len(asked), precision, false, found, [int(cut.sum()) for cut in cuts])


def tries(path: str, chosen: argparse.Namespace) -> Iterator[tuple[str, Try]]:
    folder = RunFolder(path)
    data = stored_data(folder, folder.open_existing())
    train, query = (AttributionStore(folder.store, side) for side in ("train", "query"))
    keys = [
        k for k in query.keys
        if k.field != TEXT and chosen.layer in (None, k.layer) and (not chosen.fields or k.field in chosen.fields)
    ]  # fmt: skip
    labels = QueryLabels(data, [int(row) for row in query.attributed]).labels
    assert labels is not None, "the run's data have no labels"
    train_labels, query_labels = (np.array(side, dtype=object) for side in labels)
    scorers = [Adaptive(), Centroid(), Fisher()] if chosen.scorers else [Adaptive()]
    queries, whole = InMemory(query, keys), InMemory(train, keys)

    for name in sorted({label for label in query_labels if label}):
        asked, culprits = query.attributed[query_labels == name], np.flatnonzero(train_labels == name)
        removed, rng = InMemory(train, keys, culprits), np.random.default_rng(0)
        for size in sorted({*(size for size in chosen.sizes if size < len(asked)), len(asked)}):
            for _ in range(chosen.draws if size < len(asked) else 1):
                some = np.sort(rng.choice(asked, size, replace=False)).tolist()
                if len(culprits):
                    yield name, tried(whole, queries, some, culprits, keys, scorers, data.sample)
                yield name, tried(removed, queries, some, culprits, keys, scorers[:1], data.sample)


def show(name: str, found: Sequence[Try]) -> None:
    """Means over some tries, those with culprits and those without."""
    there, gone = [one for one in found if one.found], [one for one in found if not one.found]
    said = [name]
    if there:
        said.append(f"{len(there)} tries: average precision {mean([one.precision for one in there])}")
        if all(one.queries >= FEWEST for one in there):
            said.append(f"false {mean([one.false for one in there])}, found {mean([one.found for one in there])}")
    if gone and all(one.queries >= FEWEST for one in gone):
        nothing = [[not rows for rows in one.chosen] for one in gone]
        said.append(f"{len(gone)} tries without culprits: nothing chosen {mean(nothing)}")
    print("; ".join(said), flush=True)


def mean(values: Sequence[Sequence[float]]) -> list[float]:
    return [round(float(value), 3) for value in np.mean(values, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="*", default=[3, 5, 20])
    parser.add_argument("--layer", type=int)
    parser.add_argument("--fields", nargs="*")
    parser.add_argument("--scorers", action="store_true")
    chosen = parser.parse_args()
    every: list[Try] = []
    print(f"Lists are by rate {RATES}, or by scorer: adaptive, centroid, fisher.")
    for run in chosen.runs:
        found: dict[tuple[str, int], list[Try]] = {}
        for name, one in tries(run, chosen):
            found.setdefault((name, one.queries), []).append(one)
        for (name, size), some in found.items():
            show(f"{run}: {name}, {size} queries", some)
        every += [one for some in found.values() for one in some if one.queries >= FEWEST]
    show("All", every)
    show(f"Where average precision is at least {CLEAR}", [o for o in every if o.found and o.precision[0] >= CLEAR])


if __name__ == "__main__":
    main()
