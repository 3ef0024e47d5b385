"""Samples given in Python."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch

import rept
from rept.data.samples import as_dictionaries
from rept.run import pipeline

ROWS = [
    {"prompt": "a", "response": "b", "label": None, "n": 1.0},
    {"prompt": "c", "response": None, "label": "x", "n": None},
]


def test_a_pandas_table_gives_its_rows_as_dictionaries() -> None:
    assert as_dictionaries(pandas.DataFrame(ROWS)) == ROWS
    assert as_dictionaries(ROWS) is ROWS
    turns = [{"role": "user", "content": "a"}]
    table = pandas.DataFrame({"messages": [np.array(turns, dtype=object)]})  # as read from Parquet
    assert as_dictionaries(table) == [{"messages": turns}]


def test_pandas_is_not_imported_for_other_rows() -> None:
    code = "import sys, rept.data.samples as samples; samples.as_dictionaries([]); assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trace_accepts_pandas_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def stop(config, objects, **_) -> None:
        datamodule = objects.datamodule
        raise Reached([[datamodule.source(side)[row] for row in range(2)] for side in ("train", "query")])

    monkeypatch.setattr(pipeline, "attribute", stop)
    given = []
    for rows in (ROWS, pandas.DataFrame(ROWS)):
        with pytest.raises(Reached) as reached:
            rept.trace(torch.nn.Linear(1, 1), None, rows, rows)
        given.append(reached.value.args[0])
    assert given[0] == given[1]
