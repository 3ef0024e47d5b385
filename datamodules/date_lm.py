"""DATE-LM's application tasks, read from local files in the benchmark's layout.

"DATE-LM: Benchmarking Data Attribution Evaluation for Large Language Models", NeurIPS 2025, arXiv 2507.09424;
github.com/DataAttributionEval/DATE-LM. The columns distinguish two layouts:

* toxicity and bias filtering: ``prompt, response, type``. The rows of type "Unsafe" should be found.
* factual attribution (Counterfact): ``prompt, response, true_entity, counterfactual_entity``. For each reference, the
  rows with the same two entities should be found.

A data set has a split ``train``, which is attributed to, and ``ref``, the queries. The measures are those of every run,
by these labels: ``average_precision`` over the whole ranking, ``recall@50`` and ``reciprocal_rank`` (whose mean over
queries is the MRR), in metrics.json under ``with_same``: like the benchmark, over all rows, also those that are the
reference itself.

Differences from the benchmark, and limits:

* The benchmark's toxicity score is one number a training row for all references together, and its AUPRC is the area
  under the precision-recall curve by trapezoids (``sklearn.metrics.auc``). Here each reference has its own ranking, and
  the mean of average precisions, without interpolation, is reported.
* Samples are rendered in the benchmark's format (``TEMPLATE``, Tulu's: the role's marker, a line break, the trimmed
  content), whatever template the tokenizer has, as its checkpoints were trained in it. The newline after the response's
  EOS token counts as response there, and is left out here.
* Its third data set, ftrace (a column ``facts``, several facts a row), has no single label a row and cannot be read.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.files.records import Record, Records
from datamodules.instructions import InstructionData
from rept.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
            label_column="label",
            exclude=exclude,
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            window=window,
        )

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the tokenizer, with the benchmark's chat template in place of its own."""
        tokenizer.chat_template = TEMPLATE
        super().attach(tokenizer)

    def _records(self, path: str, split: str, setting: str) -> Records:
        records = super()._records(path, split, setting)
        return LabelledRecords(records, f"{setting}={path}", is_query=setting == "datamodule.queries")


class LabelledRecords:
    """DATE-LM's records with a column ``label``: what should be found, or None if unknown.

    A toxicity reference without a type counts as unsafe, like all references of the task.

    Raises:
        UsageError: the columns fit neither layout.
    """

    def __init__(self, records: Records, where: str, is_query: bool) -> None:
        self._records = records
        found = list(records.columns)
        self._factual = all(name in found for name in ENTITIES)
        self._is_query = is_query
        if not self._factual and "type" not in found and not is_query:
            raise UsageError(
                f"Expected {where} to have the column type, or {' and '.join(ENTITIES)}; "
                f"columns found: {', '.join(found)}."
            )
        self.columns = [*(name for name in found if name != "label"), "label"]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Record | None:
        record = self._records[row]
        return None if record is None else {**record, "label": self._label(record)}

    def _label(self, record: Record) -> str | None:
        if self._factual:
            true, false = (record.get(name) for name in ENTITIES)
            return f"{true} -> {false}" if true and false else None
        return record.get("type") or (UNSAFE if self._is_query else None)
