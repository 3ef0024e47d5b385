"""Stores for benchmarks: random ones, and stores without some of their rows; and measurements in separate processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.store.reader import AttributionStore, Block
from rept.store.writer import ShardWriter
from rept.types import Key, Side


class Without(AttributionStore):
    """A store without some of its rows."""

    def __init__(self, store: AttributionStore, rows: Sequence[int] | np.ndarray) -> None:
        super().__init__(store.folder, store.side)
        self.attributed = np.setdiff1d(store.attributed, np.asarray(rows, np.int64))

    @property
    def attributed_in_order(self) -> np.ndarray:
        row = super().attributed_in_order
        return row[np.isin(row, self.attributed)]

    def blocks(self, *arguments: Any, **settings: Any) -> Iterator[Block]:
        for row, fields in super().blocks(*arguments, **settings):
            kept = torch.from_numpy(np.isin(row.numpy(), self.attributed))
            if kept.any():
                yield Block(row[kept], {key: value[kept] for key, value in fields.items()})


def write_side(folder: Path, side: Side, rows: int, fields: Callable[[Tensor], dict[Key, Tensor]]) -> None:
    """Writes one side of a store, with the given fields of row numbers (n); nothing if it is finished."""
    if AttributionStore.finished(folder, side):
        return
    writer = ShardWriter(folder, side, fingerprint="benchmark")
    for row in torch.arange(rows).split(4096):
        writer.append(row, torch.zeros(len(row)), fields(row))
    writer.close()
    AttributionStore.finish(folder, side, rows)


def apart(script: str, measure: str, folder: Path, *more: str) -> dict[str, Any]:
    """The JSON that ``script --measure MEASURE --folder FOLDER`` prints last, in a process of its own."""
    command = [sys.executable, script, "--measure", measure, "--folder", str(folder), *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
