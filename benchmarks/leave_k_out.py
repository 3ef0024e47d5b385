"""How well scores predict the effect of leaving out the rows with the highest scores: leave-k-out agreement.

    python benchmarks/leave_k_out.py [key=value ...] [--experiments rept bm25 ...] [--random 4] [--k 60] [--out DIR]

The model of the runs is trained again without k rows: for every method those with the highest mean score over all
queries, and ``--random`` sets drawn at random. All methods are evaluated on all models. The output of a model is its
log-likelihood of the first model's answers. Models that exist in DIR are not trained again. ``key=value`` are of
attribute.py; the linear datamodeling score is that of python -m rept bank.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from rept.evaluation.bank import SubsetSums, log_likelihoods
from rept.evaluation.compare import compare
from rept.evaluation.datamodeling import rank_correlations
from rept.evaluation.retraining import Retraining, retraining
from rept.evaluation.stored_scores import stored_scores
from rept.results.trace import Trace
from rept.training.finetune import train_model


def best_rows(trace: Trace, k: int) -> np.ndarray:
    """The k rows with the highest mean score over all queries."""
    mean: dict[int, float] = {}

    def sink(row: Tensor, score: Tensor) -> None:
        mean.update(zip(row.tolist(), score.double().mean(1).tolist(), strict=True))

    stored_scores(trace, sink)
    return np.array(sorted(mean, key=lambda row: -mean[row])[:k])


def outputs_without(source: Retraining, rows: np.ndarray, folder: Path) -> np.ndarray:
    """(Q) the log-likelihoods under a model trained without some rows; a finished model is reused."""
    train_model(source.without(rows.tolist(), folder), ())
    return log_likelihoods(source, folder)


def leave_k_out_agreements(sums: np.ndarray, outputs: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over sets K of ``sum_{i in K} tau_i`` and ``f(all) - f(all without K)``, (Q).

    High if leaving out the rows with the highest scores lowers the model's output for the query most. The sets should
    include high-scoring, low-scoring and random rows, so that they differ enough to compare.

    Args:
        sums: (M Q) of the rows that were left out.
        outputs: (M Q) f of the models trained without them.
        whole: (Q) f of the model of all rows.
    """
    return rank_correlations(sums, whole - outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="key=value of attribute.py, such as datamodule.rows=500")
    parser.add_argument("--experiments", nargs="+", default=["rept", "rept-paper", "bm25", "random"], help="methods")
    parser.add_argument("--random", type=int, default=4, help="models trained without k random rows")
    parser.add_argument("--k", type=int, default=60, help="rows left out of a training")
    parser.add_argument("--out", type=Path, default=Path("runs/leave-k-out"), help="folder of all models and runs")
    given = parser.parse_args()
    runs = [one for one in compare(given.experiments, given.words, given.out) if one.reason is None]
    traces = {one.experiment: Trace(one.folder) for one in runs}
    source = retraining(runs[0].folder)
    rows, rng = len(source.data.source("train")), np.random.default_rng(0)
    sets = {f"best of {name}": best_rows(trace, given.k) for name, trace in traces.items()}
    sets |= {f"random {i}": rng.permutation(rows)[: given.k] for i in range(given.random)}
    whole = log_likelihoods(source, source.model.path)
    outputs = np.stack([outputs_without(source, one, given.out / "without" / name) for name, one in sets.items()])
    left_out = np.stack([np.isin(np.arange(rows), one) for one in sets.values()])
    for name, trace in traces.items():
        sums = SubsetSums(left_out)
        queries = stored_scores(trace, sums)
        found = leave_k_out_agreements(sums.total, outputs[:, queries], whole[queries])
        error = found.std() / np.sqrt(len(found))
        print(
            f"{name}: leave-k-out agreement {found.mean():.3f} (standard error over {len(found)} queries {error:.3f})"
        )
    for name, without in zip(sets, outputs, strict=True):
        print(f"{name}: {np.nanmean(whole - without):.2f} nats less log-likelihood of an answer without these rows")


if __name__ == "__main__":
    main()
