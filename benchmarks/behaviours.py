"""Behaviour rankings of a finished run, by number of queries, and how many rows they choose.

    python benchmarks/behaviours.py runs/demo [--draws 10] [--layer 6] [--fields representation_last_prompt]

For each behaviour, draws of 3, 5, 20 and all queries: average precision by each behaviour scorer; and with the default,
the observed share of false rows and the share of culprits found at stated rates, and whether anything is chosen once
all of the behaviour's rows are taken out of the training data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.stores import Without
from rept.calibration.two_groups import two_groups
from rept.ranking.behaviour_scorer import BehaviourScorer
from rept.ranking.behaviours import fit_behaviours, rank_behaviours
from rept.ranking.metrics import average_precision
from rept.results.run_folder import RunFolder
from rept.run.query_labels import QueryLabels
from rept.run.rescore import stored_data
from rept.store.reader import AttributionStore
from rept.types import Key
from scorers.adaptive import Adaptive
from scorers.centroid import Centroid
from scorers.fisher import Fisher

RATES = (0.05, 0.1, 0.2)


def ranked(
    train: AttributionStore, query: AttributionStore, scorer: BehaviourScorer, queries: Sequence[int], keys: list[Key]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and scores, best first, and the scores of held-out queries."""
    rule = fit_behaviours(scorer, train, query, {"b": list(queries)}, [], keys)
    rows, scores = [], []
    rank_behaviours(train, rule, 1, sinks=[lambda r, s: (rows.append(r), scores.append(s[:, 0]))])
    row, score = torch.cat(rows).numpy(), torch.cat(scores).numpy()
    order = np.lexsort((row, -score))
    return row[order], score[order], rule.held_out.get("b", torch.zeros(0)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--fields", nargs="*")
    chosen = parser.parse_args()
    folder = RunFolder(chosen.run)
    data = stored_data(folder, folder.open_existing())
    train, query = (AttributionStore(folder.store, side) for side in ("train", "query"))
    keys = [
        k for k in query.keys if chosen.layer in (None, k.layer) and (not chosen.fields or k.field in chosen.fields)
    ]
    labels = QueryLabels(data, [int(row) for row in query.attributed]).labels
    assert labels is not None, "the run's data have no labels"
    train_labels, query_labels = np.array(labels[0], dtype=object), np.array(labels[1], dtype=object)
    for name in sorted({label for label in query_labels if label}):
        culprits = np.flatnonzero(train_labels == name)
        show(name, train, query, query.attributed[query_labels == name], culprits, keys, chosen.draws)


def show(
    name: str,
    train: AttributionStore,
    query: AttributionStore,
    asked: np.ndarray,
    culprits: np.ndarray,
    keys: list[Key],
    draws: int,
) -> None:
    removed = Without(train, culprits)
    for size in (3, 5, 20, len(asked)):
        if size > len(asked):
            continue
        rng, precision, chosen, nothing = np.random.default_rng(0), [], [], []
        for _ in range(draws if size < len(asked) else 1):
            some = rng.choice(asked, size, replace=False).tolist()
            row = []
            for scorer in (Adaptive(), Centroid(), Fisher()):
                rows, scores, held_out = ranked(train, query, scorer, some, keys)
                found = np.isin(rows, culprits)
                row.append(average_precision(1 + np.flatnonzero(found)))
                if isinstance(scorer, Adaptive):
                    share = two_groups(scores, held_out).false_share
                    cut = [share <= rate for rate in RATES]
                    false = [(~found[c]).mean() if c.any() else 0.0 for c in cut]
                    chosen.append(false + [found[c].sum() / len(culprits) for c in cut])
            precision.append(row)
            _, scores, held_out = ranked(removed, query, Adaptive(), some, keys)
            nothing.append([not (two_groups(scores, held_out).false_share <= rate).any() for rate in RATES])
        print(
            f"{name}, {size} queries: adaptive, centroid, fisher {np.round(np.mean(precision, 0), 3)}; "
            f"false share and power at {RATES}: {np.round(np.mean(chosen, 0), 3)}; "
            f"nothing chosen without the culprits: {np.round(np.mean(nothing, 0), 3)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
