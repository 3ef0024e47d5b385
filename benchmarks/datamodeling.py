"""Do a method's scores foretell what retraining does? Linear datamodeling score and leave-k-out agreement.

    python benchmarks/datamodeling.py [--subsets 10] [--sets 6] [--k 60] [--out DIR] [experiment=WORD] [key=value ...]

On the embedded data: one model is trained on all rows, ``--subsets`` models on random halves of them, and ``--sets``
models without k rows: the k that score highest, over all queries, the k lowest, and random ones. All have the same
seed. Each says what it makes of the answers that the first model gave to the held-out queries. With trainings of
minutes, take a few; what exists in DIR is not trained again. ``key=value`` is for the attribution.
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
from rept import finetune
from rept.config import build, compose
from rept.datamodeling import leave_k_out_agreement, linear_datamodeling_score
from rept.models import load_model, load_tokenizer
from rept.pipeline import attribute
from rept.recording import Response, sample_losses
from rept.results import Trace

SIZES = ("rows", "poisoned", "queries", "seed")  # settings of the data, for training and attribution alike


def train(out: Path, words: Sequence[str], without: np.ndarray) -> Path:
    """A model trained without some rows (N bool); not again where it is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    listed = out.with_suffix(".without.json")
    listed.write_text(json.dumps(np.flatnonzero(without).tolist()))
    exclude = [f"datamodule.exclude={listed}"] if without.any() else []
    if not (out / "behaviours.json").is_file():
        finetune.main(compose("train", [*words, *exclude, f"out={out}"]))
    return out


@torch.no_grad()
def outputs(model: Path, trace: Trace) -> np.ndarray:
    """(Q) minus the mean cross-entropy of each query's answer, as the run's first model gave it."""
    datamodule = build(trace.config.datamodule)
    datamodule.answers.update({line["query"]: line["response"] for line in trace.queries if line["generated"]})
    datamodule.attach(load_tokenizer(str(model)))
    network = load_model(str(model), dtype="float32").eval()
    found = np.full(len(trace.queries), np.nan)
    for batch in datamodule.batches("query", range(len(trace.queries))):
        if len(batch):
            found[batch.row] = -sample_losses(network, batch.input_ids, Response.of(batch.labels)).numpy()
    return found


def scores(trace: Trace, rows: int) -> np.ndarray:
    """(Q N) of a run whose hits are all rows; queries without hits have nan."""
    found = np.full((len(trace.queries), rows), np.nan)
    for query in range(len(trace.queries)):
        for hit in trace.hits(query):
            found[query, hit.row] = hit.score
    return found


def left_out(mean: np.ndarray, k: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """(sets N) bool: the k rows of the highest mean score, the k lowest, and random ones."""
    order = mean.argsort()
    chosen = [order[-k:], order[:k], *(rng.permutation(len(mean))[:k] for _ in range(sets - 2))][:sets]
    return np.stack([np.isin(np.arange(len(mean)), one) for one in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="key=value of the attribution, and of the embedded data's size")
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--k", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/datamodeling"))
    given = parser.parse_args()
    sizes = [word for word in given.words if word.startswith(tuple(f"datamodule.{name}=" for name in SIZES))]
    training = [*sizes, f"trainer.max_epochs={given.epochs}"]
    rows = compose("attribute", sizes).datamodule.rows
    whole = train(given.out / "whole", training, np.zeros(rows, bool))
    fixed = [f"model.path={whole}", f"top_k={rows}", "tokens.hits=0", "report=false", f"out={given.out / 'run'}"]
    trace = attribute(compose("attribute", [*given.words, *fixed]), show_result=False)
    tau = scores(trace, rows)
    known = ~np.isnan(tau).any(1)
    rng = np.random.default_rng(0)
    halves = np.stack([rng.permutation(rows) < rows // 2 for _ in range(given.subsets)])
    sets = left_out(tau[known].mean(0), given.k, given.sets, rng)
    of_halves = [outputs(train(given.out / f"half-{i}", training, ~half), trace) for i, half in enumerate(halves)]
    of_sets = [outputs(train(given.out / f"without-{i}", training, one), trace) for i, one in enumerate(sets)]
    first = outputs(whole, trace)
    lds = [linear_datamodeling_score(tau[q], halves, np.stack(of_halves)[:, q]) for q in np.flatnonzero(known)]
    lko = [leave_k_out_agreement(tau[q], sets, np.stack(of_sets)[:, q], first[q]) for q in np.flatnonzero(known)]
    for name, found, count in (
        ("linear datamodeling score", lds, len(halves)),
        ("leave-k-out agreement", lko, len(sets)),
    ):
        error = np.std(found) / np.sqrt(len(found))
        print(f"{name}: {np.mean(found):.3f} (standard error over {len(found)} queries {error:.3f}; {count} models)")


if __name__ == "__main__":
    main()
