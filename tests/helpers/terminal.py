"""The run's console, writing into a stream as into a log file."""

from __future__ import annotations

from typing import TextIO

import pytest

from rept.utils.console import console


def print_to(stream: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends all output of the console to ``stream``, 120 columns wide, until the test ends."""
    monkeypatch.setattr(console, "_file", stream)
    monkeypatch.setattr(console, "_force_terminal", False)
    monkeypatch.setattr(console, "_width", 120)
