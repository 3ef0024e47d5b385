"""Histogram: exact counts, whatever the order and the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rept.ranking.histogram import MOST_BINS, Histogram

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
VALUES = st.lists(FINITE | st.floats(-1, 1, width=32), min_size=1, max_size=60)


def _of(values: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return histogram


@settings(deadline=None)
@given(VALUES, st.integers(1, 7))
def test_counts_are_those_of_numpy_for_any_parts(values: list[float], parts: int) -> None:
    merged = Histogram.merged(_of(values[part::parts]) for part in reversed(range(parts)) if values[part::parts])
    found = merged.as_dict()
    assert found == _of(values).as_dict()
    edges = found["low"] + found["width"] * np.arange(len(found["counts"]) + 1)
    expected, _ = np.histogram(np.array(values, np.float32).astype(np.float64), np.append(edges[:-1], np.inf))
    assert found["counts"] == expected.tolist()
    assert len(found["counts"]) <= MOST_BINS


def test_bins_are_as_narrow_as_their_number_allows() -> None:
    found = _of([0.0, 0.999]).as_dict()
    assert found["width"] == 1 / 128 and len(found["counts"]) == 128


@pytest.mark.parametrize("value", [0.0, 1e-30, -3e38, 3e38])
def test_one_value_of_any_size_is_one_bin(value: float) -> None:
    found = _of([value, value]).as_dict()
    assert found["counts"] == [2]
    assert found["low"] <= np.float32(value) <= found["low"] + found["width"]


def test_parts_of_129_bins_together_are_merged_in_pairs() -> None:
    found = Histogram.merged([_of([0.0, 127 / 128]), _of([1.0])]).as_dict()
    assert found["width"] == 1 / 64 and len(found["counts"]) == 65 and sum(found["counts"]) == 3


def test_without_values_there_are_no_bins() -> None:
    assert Histogram.merged([]).as_dict()["counts"] == []
