"""Sanity checks of a method: do its scores depend on the model, and do they differ between behaviours and rows?

Each is one number that exposes a method which only looks good; none of them needs retraining.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from rept.config.plug_ins import build
from rept.data.behaviours import behaviour_of
from rept.errors import UsageError
from rept.evaluation.datamodeling import rank_correlations
from rept.evaluation.retraining import trained_text
from rept.evaluation.stored_scores import signatures_of, stored_scores
from rept.ranking.rank import ScoreFile, rank, read_scores
from rept.ranking.scorer import Scorer
from rept.results.trace import Trace
from rept.run.rescore import stored_data
from rept.store.reader import AttributionStore
from rept.types import PreTrainedModel

CHECKS = ("randomised", "overlap", "self")
SHARED = 10  # hits of a query that are compared with those of others
DRAWN = 100  # training rows that are their own queries


@dataclass(frozen=True)
class Sanity:
    """The results of a method's checks; None where a check was not made or does not apply."""

    # `agreement_with` the scores of the model with `shuffled` weights: near 0 if scores come from what it has learned.
    randomised: float | None = None
    overlap: float | None = None  # `shared_hits` of queries with different behaviours
    self_retrieval: float | None = None
    seconds: float | None = None  # of extraction and ranking with shuffled weights; other checks read what is stored
    reason: str | None = None  # why there are no scores of the model with shuffled weights


def chosen_checks(given: object) -> list[str]:
    """Returns the names of a command line's ``sanity=``; None is all. Raises UsageError unless they are `CHECKS`."""
    if given is None:
        return list(CHECKS)
    if not isinstance(given, list) or not all(name in CHECKS for name in given):
        raise UsageError(f"Expected sanity to be a list of {', '.join(CHECKS)}, as in sanity=[self], but got {given}.")
    return given


@torch.no_grad()
def shuffled(model: PreTrainedModel, seed: int = 0) -> None:
    """Permutes the numbers of every parameter in place: each keeps its distribution and loses its content.

    Adebayo et al. 2018 (arXiv 1810.03292) randomise weights to test explanations of images.

    Raises:
        UsageError: weights that are quantized, sharded or kept off the devices.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not torch.Tensor or parameter.is_meta or not parameter.is_floating_point():
            raise UsageError(f"The weights of {name} cannot be shuffled: they are quantized, sharded or not in memory.")
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data.copy_(parameter.flatten()[order].view_as(parameter))


def agreement_with(one: Trace, other: Trace) -> float | None:
    """Spearman's rank correlation of two runs' scores over all training rows, as a mean over queries.

    Queries whose scores are all equal in one of the runs have none and do not count; None if none is left.
    """
    found: list[float] = []
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("one", "other")]
        queries = []
        for trace, path in zip((one, other), files, strict=True):
            with closing(ScoreFile(path)) as sink:
                queries.append(stored_scores(trace, sink).tolist())
        for query in sorted(set(queries[0]) & set(queries[1])):
            (row, score), (other_row, other_score) = (
                read_scores([path], known.index(query)) for path, known in zip(files, queries, strict=True)
            )
            _, at, other_at = np.intersect1d(row, other_row, return_indices=True)
            pair = score[at], other_score[other_at]
            if all(side.min() < side.max() for side in pair):
                found.append(float(rank_correlations(pair[0][:, None], pair[1][:, None])[0]))
    return float(np.mean(found)) if found else None


def shared_hits(trace: Trace, first: int = SHARED) -> float | None:
    """The share of the first hits that two queries of different behaviours have in common, as a mean over all pairs.

    None unless there are queries of at least two behaviours.
    """
    labels = {query: behaviour_of(trace.queries[query]["label"]) for query in trace.answered}
    sizes = Counter(label for label in labels.values() if label)
    pairs = sum(sizes.values()) ** 2 - sum(size**2 for size in sizes.values())
    if not pairs:
        return None
    of_row: dict[int, Counter[str]] = {}
    for query, label in labels.items():
        if label:
            for hit in trace.hits(query)[:first]:
                of_row.setdefault(hit.row, Counter())[label] += 1
    common = sum(sum(found.values()) ** 2 - sum(n**2 for n in found.values()) for found in of_row.values())
    return common / (pairs * min(first, trace.config.top_k))


def self_retrieval(trace: Trace, drawn: int = DRAWN, seed: int = 0) -> float | None:
    """The share of drawn training rows that are their own best hit; rows with the same text count as one.

    They are ranked by their stored signatures, so the model is not needed. None for an extractor that reads queries in
    another way than training rows.
    """
    if not trace.provenance.get("symmetric", True):
        return None
    store = AttributionStore(signatures_of(trace), "train")
    count = min(drawn, len(store.attributed))
    rows = np.sort(np.random.default_rng(seed).permutation(store.attributed)[:count])
    keys = AttributionStore(signatures_of(trace), "query").keys
    best = rank(store, store.read(rows, keys), build(trace.config.scorer, Scorer), top_k=1).best.row[:, 0].tolist()
    data = stored_data(trace.folder, trace.config)
    text = {row: trained_text(data.sample("train", row)) for row in {*rows.tolist(), *best}}
    return sum(text[row] == text[hit] for row, hit in zip(rows.tolist(), best, strict=True)) / count
