"""What a run records about its machine."""

from __future__ import annotations

import importlib
import sys

import pytest

from rept.utils import environment


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("linux", 1024)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    module = importlib.reload(environment)
    try:
        monkeypatch.setattr("resource.getrusage", lambda who: type("Usage", (), {"ru_maxrss": 3}))
        assert module.peak_memory() == 3 * unit
    finally:
        monkeypatch.undo()
        importlib.reload(environment)
