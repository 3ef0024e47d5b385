"""DATE-LM's application tasks, read from local files in the benchmark's layout.

"DATE-LM: Benchmarking Data Attribution Evaluation for Large Language Models", NeurIPS 2025, arXiv 2507.09424;
github.com/DataAttributionEval/DATE-LM. The columns distinguish two layouts:

* toxicity and bias filtering: ``prompt, response, type``. The rows of type "Unsafe" should be found.
* factual attribution (Counterfact): ``prompt, response, true_entity, counterfactual_entity``. For each reference, the
  rows with the same two entities should be found.

A data set has a split ``train``, which is attributed to, and ``ref``, the queries. metrics.json has the measures of
every run (those under ``with_same`` are over all rows, like the benchmark's, also those that are the reference itself)
and those of the benchmark's evaluator (``evaluation/evaluate_application.py`` there):

* ``date_lm_auprc`` for toxicity and bias: `trapezoid_auprc` of one score for each training row. The evaluator is given
  these; here a row's is its mean over all references.
* ``date_lm_recall@50`` and ``date_lm_mrr`` for factual attribution: means over references of `recall_and_rank`.

Differences from the benchmark, and limits:

* A training row that was set aside (no response, or too long a prompt) has no score, and ranks last. References to
  which no row belongs are left out; the benchmark has none.
* Samples are rendered in the format that the benchmark's checkpoints were trained in, whatever template the tokenizer
  has: ``TEMPLATE``, Tulu's. The newline after the response's EOS token counts as response there, and not here.
* Its third data set, ftrace (a column ``facts``, several facts a row), has no single label a row and cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.files.columns import Columns
from datamodules.files.records import Record, Records
from datamodules.instructions import SETTINGS, InstructionData, InstructionRows
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import PreTrainedTokenizerBase, Side, Status

UNSAFE = "Unsafe"
ENTITIES = ("true_entity", "counterfactual_entity")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


class DateLM(InstructionData):
    """DATE-LM's training and reference rows, labelled by what should be found.

    Args:
        train: training data: a JSONL, CSV or Parquet file, or an Arrow folder.
        queries: the references; None: the split ``query_split`` of the training data.
        split, query_split: of a folder with several splits.
        exclude, max_length, tokens_per_batch, window: as in :class:`InstructionData`.
    """

    def __init__(
        self,
        train: str | None = None,
        queries: str | None = None,
        split: str = "train",
        query_split: str = "ref",
        exclude: str | Path | Collection[int] | None = None,
        max_length: int = 1024,
        tokens_per_batch: int = 2048,
        window: int = 512,
    ) -> None:
        super().__init__(
            train=train,
            queries=queries or train,
            split=split,
            query_split=query_split,
            exclude=exclude,
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            window=window,
        )

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the tokenizer, with the benchmark's chat template in place of its own."""
        tokenizer.chat_template = TEMPLATE
        super().attach(tokenizer)

    def published_measures(
        self, ranking: Callable[[int], tuple[np.ndarray, np.ndarray]], queries: Sequence[int]
    ) -> Mapping[str, float]:
        source, asked = self.source("train"), self.source("query")
        labels = np.array([_label_of(source[row]) for row in range(len(source))], dtype=object)
        known = set(labels)
        scores = (_with_last(ranking(i), len(labels)) for i in range(len(queries)))
        if UNSAFE in known:
            mean = sum(scores, np.zeros(len(labels))) / len(queries)
            return {"date_lm_auprc": trapezoid_auprc(mean, labels == UNSAFE)}
        wanted = [_label_of(asked[query]) for query in queries]
        found = [
            recall_and_rank(score, labels == label)
            for score, label in zip(scores, wanted, strict=True)
            if label is not None and label in known
        ]
        recall, reciprocal = np.mean(found, axis=0).tolist() if found else (0.0, 0.0)
        return {"date_lm_recall@50": recall, "date_lm_mrr": reciprocal} if found else {}

    def _open(self, side: Side) -> InstructionRows:
        rows = super()._open(side)
        return LabelledRows(rows.records, rows.columns, side, f"{SETTINGS[side]}={self._paths[side]}")


def trapezoid_auprc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """The area under the precision-recall curve by trapezoids, as scikit-learn's ``auc`` of that curve.

    With t_1 > t_2 > ... the distinct scores, and P_k and R_k precision and recall of the rows with scores >= t_k
    (P_0 = 1, R_0 = 0): ``sum_k (R_k - R_(k-1)) (P_k + P_(k-1)) / 2``.

    Args:
        scores: (N).
        relevant: (N) bool, at least one of them true.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)  # of each distinct score
    hits = relevant[order].cumsum()[last]
    precision, recall = np.append(1.0, hits / (last + 1)), np.append(0.0, hits / relevant.sum())
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def recall_and_rank(scores: np.ndarray, relevant: np.ndarray, k: int = 50) -> tuple[float, float]:
    """Recall@k, the share of the relevant rows among the first k, and the reciprocal rank of the first relevant one.

    Equal scores rank by row number; the benchmark's sort leaves their order open.

    Args:
        scores: (N).
        relevant: (N) bool, at least one of them true.
    """
    ranks = 1 + np.flatnonzero(relevant[np.argsort(-scores, kind="stable")])
    return float((ranks <= k).mean()), 1 / int(ranks[0])


def _with_last(ranking: tuple[np.ndarray, np.ndarray], rows: int) -> np.ndarray:
    """Scores (N) by row number; a row without a score is below all others."""
    scores = np.full(rows, -np.inf)
    scores[ranking[0]] = ranking[1]
    return scores


def _label_of(sample: Sample | Status) -> str | None:
    return None if isinstance(sample, Status) else sample.label


class LabelledRows(InstructionRows):
    """DATE-LM's samples, labelled by what should be found, or None if unknown.

    A toxicity reference without a type counts as unsafe, like all references of the task. Raises UsageError if the
    columns fit neither layout.
    """

    def __init__(self, records: Records, columns: Columns, side: Side, where: str) -> None:
        super().__init__(records, replace(columns, label="label"))
        found = list(records.columns)
        self._factual = all(name in found for name in ENTITIES)
        self._without_type = UNSAFE if side == "query" else None
        if not self._factual and "type" not in found and side == "train":
            raise UsageError(
                f"Expected {where} to have the column type, or {' and '.join(ENTITIES)}; "
                f"columns found: {', '.join(found)}."
            )

    def sample(self, record: Record) -> Sample | Status:
        return super().sample(record | {"label": self._label(record)})

    def _label(self, record: Record) -> str | None:
        if self._factual:
            true, false = (record.get(name) for name in ENTITIES)
            return f"{true} -> {false}" if true and false else None
        return record.get("type") or self._without_type
