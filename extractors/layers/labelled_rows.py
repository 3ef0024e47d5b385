"""The layer by labels: where rows with the same label are most similar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from extractors.layers.probe import layer_states
from rept.errors import UsageError
from rept.ranking.metrics import average_precision
from rept.signatures.extractor import Position
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel
from rept.utils.tensors import unit


class LabelledProbe:
    """The layer with the highest mean average precision on labelled probe rows. **It reads labels**, so measures on the
    same labels must be reported as those of a choice by labels.

    Each planted row of the probe is a query against the other probe rows, ranked by the cosine of the residual stream's
    representations; relevant are those with the same label. A row with a label of its own is no query. ``probes`` has
    each query's average precision at layers 1 to L, ``curve`` their mean; of equal layers the last is chosen.

    Args:
        n: training rows in the probe, half of them planted if there are so many.
        position: where the representation is read, as in :class:`extractors.sites.reader.SiteExtractor`.

    Raises:
        UsageError: ``n`` is less than 3; when called, no two probe rows have the same label, or there are no others.
    """

    reads_labels: Literal[True] = True

    def __init__(self, n: int = 64, position: Position = "last_prompt") -> None:
        if n < 3:
            raise UsageError(f"layers.n must be at least 3, two rows with one label and another row, not {n}.")
        self.probe_rows = n
        self.position = position

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch], labels: Mapping[int, str | None]) -> LayerChoice:
        states: list[Tensor] = []
        rows: list[int] = []
        for batch, block in layer_states(model, probe, position=self.position):
            states.append(block)
            rows += batch.row.tolist()
        curves = precision_by_layer(torch.cat(states, dim=1), [labels[row] for row in rows]) if states else None
        if curves is None:
            raise UsageError(
                "layers=labelled_probe needs labels: at least two training rows with the same label, other than clean, "
                "and one with another or none. Name their column by datamodule, or choose another strategy."
            )
        curve = curves.mean(0)
        best = len(curve) - 1 - int(np.argmax(curve[::-1]))
        return LayerChoice(
            [best + 1],
            f"Chosen by labels: at layer {best + 1} the mean average precision of {len(curves)} labelled probe rows is "
            f"highest, {curve[best]:.3f}.",
            curve=curve.tolist(),
            measure="average precision of labelled probe rows",
            first=1,
            agreement=float((curves[:, best] == curves.max(1)).mean()),
            probes=curves.tolist(),
        )


def precision_by_layer(states: Tensor, labels: Sequence[str | None]) -> np.ndarray | None:
    """Average precision (queries L) of each labelled row as a query against all others, by the cosine of states
    (L B D); equal cosines rank by position. None if no row can be a query, or there is no row with another label."""
    rows = unit(states.double())
    cosine = rows @ rows.transpose(1, 2)  # (L B B)
    found = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        relevant = np.array([labels[j] == label for j in others])
        if label is None or not relevant.any() or relevant.all():
            continue
        order = cosine[:, i, others].argsort(dim=1, descending=True, stable=True).numpy()  # (L B-1)
        found.append([average_precision(1 + np.flatnonzero(relevant[ranked])) for ranked in order])
    return np.array(found) if found else None
