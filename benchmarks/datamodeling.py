"""How well scores predict the effect of retraining: linear datamodeling score and leave-k-out agreement.

    python benchmarks/datamodeling.py [--experiments rept bm25 ...] [--subsets 10] [--random 4] [--k 60] [--out DIR]

On the embedded data, one model is trained on all rows, ``--subsets`` models on random halves of them, and further
models without k rows each: for every method the k rows with the highest mean score over all queries, and ``--random``
sets drawn at random. All trainings use the same seed, and all methods are evaluated on all models. The output of a
model is minus its loss on the answers that the model of all rows gave to the held-out queries. Models that exist in DIR
are not trained again. Further arguments are ``key=value`` of attribute.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.retraining_scores import leave_k_out_agreement, linear_datamodeling_score
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.data.datamodule import AttributionDataModule
from rept.model.hooks import Response, sample_losses
from rept.model.loading import load_model, load_tokenizer
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.training import finetune

SIZES = ("rows", "poisoned", "queries", "seed")  # settings of the data, used for both training and attribution


def train(out: Path, words: Sequence[str], without: np.ndarray) -> Path:
    """Trains a model without some rows (N bool) and returns its folder; a finished model is reused."""
    out.parent.mkdir(parents=True, exist_ok=True)
    listed = out.with_suffix(".without.json")
    listed.write_text(json.dumps(np.flatnonzero(without).tolist()))
    exclude = [f"datamodule.exclude={listed}"] if without.any() else []
    if not (out / "behaviours.json").is_file():
        finetune.train_model(compose("train", [*words, *exclude, f"out={out}"]))
    return out


@torch.no_grad()
def outputs(model: Path, trace: Trace) -> np.ndarray:
    """(Q) minus the mean cross-entropy, under ``model``, of each query's answer as recorded in the run."""
    datamodule = build(trace.config.datamodule, AttributionDataModule)
    datamodule.answers.update({line["query"]: line["response"] for line in trace.queries if line["generated"]})
    datamodule.attach(load_tokenizer(str(model)))
    network = load_model(str(model), dtype="float32").eval()
    found = np.full(len(trace.queries), np.nan)
    for batch in datamodule.batches("query", range(len(trace.queries))):
        if len(batch):
            found[batch.row] = -sample_losses(network, batch.input_ids, Response.of(batch.labels)).numpy()
    return found


def scores(trace: Trace, rows: int) -> np.ndarray:
    """Scores (Q N) of a run whose hits are all rows; nan for queries without hits."""
    found = np.full((len(trace.queries), rows), np.nan)
    for query in range(len(trace.queries)):
        for hit in trace.hits(query):
            found[query, hit.row] = hit.score
    return found


def left_out(best: Sequence[np.ndarray], rows: int, k: int, random: int, rng: np.random.Generator) -> np.ndarray:
    """(M N) bool: for each method the k rows with the highest mean score, then ``random`` sets of k random rows."""
    chosen = [*(mean.argsort()[-k:] for mean in best), *(rng.permutation(rows)[:k] for _ in range(random))]
    return np.stack([np.isin(np.arange(rows), one) for one in chosen])


def traced(experiment: str, model: Path, out: Path, rows: int, words: Sequence[str]) -> Trace:
    """Runs one method with all training rows as hits."""
    fixed = [f"model.path={model}", f"top_k={rows}", "tokens.hits=0", "report=false", f"out={out / experiment}"]
    return attribute(compose("attribute", [f"experiment={experiment}", *words, *fixed]), show_result=False)


def report(name: str, found: Sequence[float], models: int) -> None:
    error = np.std(found) / np.sqrt(len(found))
    print(f"{name}: {np.mean(found):.3f} (standard error over {len(found)} queries {error:.3f}; {models} models)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="key=value of attribute.py, such as datamodule.rows=500")
    parser.add_argument("--experiments", nargs="+", default=["rept", "rept-paper", "bm25", "random"], help="methods")
    parser.add_argument("--subsets", type=int, default=10, help="models trained on random halves")
    parser.add_argument("--random", type=int, default=4, help="models trained without k random rows")
    parser.add_argument("--k", type=int, default=60, help="rows left out of a training")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/datamodeling"), help="folder of all models and runs")
    given = parser.parse_args()
    sizes = [word for word in given.words if word.startswith(tuple(f"datamodule.{name}=" for name in SIZES))]
    training = [*sizes, f"trainer.max_epochs={given.epochs}"]
    rows = compose("attribute", sizes).datamodule["rows"]
    whole = train(given.out / "whole", training, np.zeros(rows, bool))
    traces = {name: traced(name, whole, given.out, rows, given.words) for name in given.experiments}
    tau = {name: scores(trace, rows) for name, trace in traces.items()}
    known = ~np.isnan(np.stack(list(tau.values()))).any((0, 2))  # queries
    rng = np.random.default_rng(0)
    halves = np.stack([rng.permutation(rows) < rows // 2 for _ in range(given.subsets)])
    sets = left_out([one[known].mean(0) for one in tau.values()], rows, given.k, given.random, rng)
    trace = next(iter(traces.values()))
    of_halves = [outputs(train(given.out / f"half-{i}", training, ~half), trace) for i, half in enumerate(halves)]
    of_sets = [outputs(train(given.out / f"without-{i}", training, one), trace) for i, one in enumerate(sets)]
    first, kept = outputs(whole, trace), np.flatnonzero(known)
    harm = [float((first - without)[known].mean()) for without in of_sets]
    for name, found in tau.items():
        lds = [linear_datamodeling_score(found[q], halves, np.stack(of_halves)[:, q]) for q in kept]
        lko = [leave_k_out_agreement(found[q], sets, np.stack(of_sets)[:, q], first[q]) for q in kept]
        report(f"{name}: linear datamodeling score", lds, len(halves))
        report(f"{name}: leave-k-out agreement", lko, len(sets))
    names = [*(f"best of {name}" for name in tau), *(f"random {i}" for i in range(given.random))]
    added = dict(zip(names, harm, strict=True))
    print("added loss on the answers of the model of all rows, in nats, without each set of k rows:", added)


if __name__ == "__main__":
    main()
