"""A bank of retrainings on random subsets of the training rows, and how well scores predict their outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rept.data.behaviours import behaviour_of
from rept.errors import UsageError
from rept.evaluation.datamodeling import jackknife, jackknife_error, rank_correlations
from rept.evaluation.retraining import Retraining, check_plan
from rept.evaluation.stored_scores import stored_scores
from rept.model.hooks import Response, sample_losses
from rept.results.trace import Trace
from rept.run.prepare import load_configured
from rept.training.finetune import train_model
from rept.utils.console import say
from rept.utils.digests import text_digest
from rept.utils.files import lock_folder
from rept.utils.json_files import read_json, write_json


@dataclass(frozen=True)
class Subsets:
    """Which rows each training of a bank uses: ``share`` of all rows, the same for any number of trainings.

    Raises UsageError for fewer than 3 trainings, or a share that is not between 0 and 1.
    """

    trainings: int = 50
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trainings < 3 or not 0 < self.share < 1:
            raise UsageError(
                "Expected at least 3 trainings and a share of the rows between 0 and 1, but got "
                f"trainings={self.trainings} and share={self.share}."
            )

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """Returns (M N) bool by position in ``rows`` (N): what each training uses."""
        size = round(self.share * len(rows))
        if not 0 < size < len(rows):
            raise UsageError(f"Expected enough rows to use {self.share:.0%} of them, but there are {len(rows):,}.")
        drawn = [np.random.default_rng([self.seed, i]).permutation(len(rows))[:size] for i in range(self.trainings)]
        return np.stack([np.isin(np.arange(len(rows)), one) for one in drawn])


@dataclass(frozen=True)
class Bank:
    """Finished trainings."""

    member: np.ndarray  # (M N) bool by row number: the rows that each model was trained on
    outputs: np.ndarray  # (M Q) log-likelihood of each query's response; NaN for a query that a model cannot read


@dataclass(frozen=True)
class Agreement:
    """The linear datamodeling score of one method."""

    experiment: str
    mean: float  # over queries
    without: list[float]  # (M) the mean without each training
    labels: dict[str, float]  # the mean of each behaviour's queries
    queries: list[float | None]  # the score of each query; None where it has none

    @property
    def error(self) -> float:
        """The standard error of the mean over trainings."""
        return jackknife_error(np.array(self.without))

    def behind(self, other: Agreement) -> tuple[float, float]:
        """How much lower this mean is than another's, and the standard error of the difference over trainings."""
        return other.mean - self.mean, jackknife_error(np.array(other.without) - np.array(self.without))


def train_bank(source: Retraining, subsets: Subsets, out: Path) -> Bank:
    """Trains the models that are missing in ``out/trainings``, and asks each for the run's responses.

    The same call again resumes; more trainings add to those that are there.

    Raises:
        UsageError: ``out`` holds another bank, the recipe's base model is missing or has changed, or the recipe is for
            several processes.
    """
    for key in ("devices", "num_nodes"):
        if (count := source.recipe.trainer.get(key, 1)) not in (1, "auto"):
            raise UsageError(f"A bank is trained by one process, but the recipe has trainer.{key}={count}.")
    source.attach_base()
    data = source.data
    every = range(len(data.source("train")))
    rows = np.array([row for row in every if row not in data.excluded and data.status("train", row).attributed])
    chosen = subsets.draw(rows)
    with lock_folder(out):
        plan = {"weights": source.fingerprint("weights"), "training data": source.fingerprint("training data")}
        plan |= {"share": subsets.share, "subset_seed": subsets.seed}
        write_json(out / "bank.json", check_plan(out / "bank.json", "bank", plan))
        outputs = []
        for number, used in enumerate(chosen):
            say(f"Training {number + 1} of {len(chosen)}, on {used.sum():,} of {len(rows):,} rows")
            folder = out / "trainings" / f"{number:03d}"
            train_model(source.without(rows[~used].tolist(), folder), ())
            outputs.append(_outputs(source, folder))
    member = np.zeros((len(chosen), len(every)), bool)
    member[:, rows] = chosen
    return Bank(member, np.stack(outputs))


def agreement(experiment: str, trace: Trace, bank: Bank) -> Agreement:
    """Returns the linear datamodeling score of a run on the bank's queries; raises UsageError if none is left.

    Queries that the run could not score, or a model could not read, do not count.
    """
    sink = SubsetSums(bank.member)
    queries = stored_scores(trace, sink)
    sums, outputs = sink.total, bank.outputs[:, queries]
    read = np.isfinite(outputs).all(0)
    if not read.any():
        raise UsageError(f"No query of {trace.folder.path} can be read by all models of the bank.")
    sums, outputs, queries = sums[:, read], outputs[:, read], queries[read]
    scores = rank_correlations(sums, outputs)
    by_label: dict[str, list[float]] = {}
    for query, score in zip(queries, scores.tolist(), strict=True):
        if label := behaviour_of(trace.queries[query]["label"]):
            by_label.setdefault(label, []).append(score)
    known = dict(zip(queries.tolist(), scores.tolist(), strict=True))
    return Agreement(
        experiment,
        float(scores.mean()),
        jackknife(lambda kept: rank_correlations(sums[kept], outputs[kept]).mean(), len(sums)).tolist(),
        {label: float(np.mean(found)) for label, found in sorted(by_label.items())},
        [known.get(query) for query in range(len(trace.queries))],
    )


class SubsetSums:
    """A sink that adds up each query's scores over the rows of each set: ``total`` (M Q), from member (M N) bool."""

    def __init__(self, member: np.ndarray) -> None:
        self.member = member
        self.total: np.ndarray = np.zeros(())

    def __call__(self, row: Tensor, score: Tensor) -> None:
        self.total = self.total + self.member[:, row.numpy()].astype(np.float64) @ score.double().numpy()


def _outputs(source: Retraining, folder: Path) -> np.ndarray:
    """The log-likelihoods (Q) of a finished model, which are computed once for the same responses and their tokens."""
    read_by = [str(source.fingerprint(name)) for name in ("query data", "template", "max_length", "model dtype")]
    asked = text_digest(*read_by, *(f"{line['prompt']}\n{line['response']}" for line in source.trace.queries))
    file = folder / "outputs.json"
    known = read_json(file) if file.is_file() else {}
    if known.get("queries") != asked:
        found = log_likelihoods(source, folder).tolist()
        known = {"queries": asked, "log_likelihood": [None if np.isnan(value) else value for value in found]}
        write_json(file, known)
    return np.array(known["log_likelihood"], dtype=np.float64)  # None becomes NaN


@torch.no_grad()
def log_likelihoods(source: Retraining, folder: Path) -> np.ndarray:
    """Returns those (Q) of the run's responses under a model; NaN where its tokenizer makes too many tokens of one.

    Sums over tokens, not means: tokenizers that were trained on different rows cut a response differently.
    """
    settings, data = source.trace.config, source.run_data
    config = replace(settings, model=replace(settings.model, path=str(folder), adapter=None))
    model, tokenizer = load_configured(config, str(folder))
    data.attach(tokenizer)
    found = np.full(len(source.trace.queries), np.nan)
    for batch in filter(len, data.batches("query", range(len(found)))):
        response = Response.of(batch.labels)
        likelihoods = -sample_losses(model, batch.input_ids, response) * response.count
        found[batch.row.numpy()] = likelihoods.numpy()
    return found
