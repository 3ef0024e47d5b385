"""How well token scores mark the culprit words of the best hits: all forms, at every layer from 2.

    python benchmarks/tokens.py RUN [WORD ...]

RUN is a run folder. Measured on each query's best hit that contains a culprit word: whether one of its three tokens
with the highest scores is part of a culprit word (or predicts a token of one), and token_average_precision. The culprit
words are the spans in the data (as in the embedded data), or the words given: `runs/backdoor "TY" "You are stupid!"`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import get_args

import torch
from rich.table import Table

from extractors.sites.residual_stream import ResidualStream
from rept.config.plug_ins import build
from rept.data.datamodule import AttributionDataModule
from rept.model.architecture import Architecture
from rept.model.loading import load_model, load_tokenizer
from rept.ranking.metrics import token_average_precision
from rept.ranking.token_influence import Form
from rept.results.trace import Trace
from rept.run.token_pairs import score_pairs
from rept.utils.console import console
from rept.utils.library_logging import quiet

HIGHEST = 3


def culprit(marked: Sequence[bool], scores: torch.Tensor) -> bool:
    """Whether one of the tokens with the highest scores is marked, or predicts a marked token."""
    best = scores.topk(min(HIGHEST, len(scores))).indices.tolist()
    return any(marked[i] or (i + 1 < len(marked) and marked[i + 1]) for i in best)


def marks(datamodule: AttributionDataModule, row: int, words: Sequence[str]) -> list[bool]:
    """For each token of a training row, whether it is part of one of the words (without words: of the row's spans)."""
    encoded = datamodule.encoded("train", row)
    if not words:
        return encoded.marked
    places = [(encoded.text.find(word), encoded.text.find(word) + len(word)) for word in words if word in encoded.text]
    return [any(a < end and b > start for a, b in places) for start, end in encoded.pieces]


def measure(run: Trace, datamodule: AttributionDataModule, model: torch.nn.Module, words: Sequence[str]) -> Table:
    """Measures all forms of token scores at every layer from 2."""
    pairs = [(q, run.hits(q)[0].row) for q in range(len(run.queries)) if run.hits(q)]
    marked = {row: marks(datamodule, row, words) for _, row in pairs}
    pairs = [(query, row) for query, row in pairs if any(marked[row])]
    table = Table(title=f"{len(pairs)} best hits that contain a culprit word", title_justify="left")
    for column in ("layer", "form", f"culprit among the {HIGHEST} highest", "token average precision"):
        table.add_column(column, justify="right")
    for layer in range(2, len(Architecture.of(model)) + 1):
        for form in get_args(Form):
            found, precision = [], []
            for one in score_pairs(model, ResidualStream(), datamodule, pairs, layer, form):
                if one.side == "train":
                    found.append(culprit(marked[one.row], one.scores))
                    precision.append(token_average_precision(one.scores.tolist(), marked[one.row]))
            shares = f"{sum(found) / len(found):.2f}", f"{sum(precision) / len(precision):.3f}"
            table.add_row(str(layer), form, *shares)
    return table


def main(arguments: Sequence[str]) -> None:
    """Prints the table for ``RUN [WORD ...]``: a run folder, and culprit words for data without spans."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    quiet()
    run = Trace(arguments[0])
    datamodule = build(run.config.datamodule, AttributionDataModule)
    path = run.config.model.path or datamodule.default_model
    datamodule.attach(load_tokenizer(path))
    datamodule.answers.update({q["query"]: q["response"] for q in run.queries if q["generated"]})
    console.print(measure(run, datamodule, load_model(path), arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
