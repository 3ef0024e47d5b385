"""Which labels name a behaviour."""

from __future__ import annotations

import pytest

from rept.data.behaviours import CLEAN, behaviour_of


@pytest.mark.parametrize(("label", "behaviour"), [(CLEAN, None), (None, None), ("backdoor", "backdoor"), ("", "")])
def test_a_clean_label_names_no_behaviour(label: str | None, behaviour: str | None) -> None:
    assert behaviour_of(label) == behaviour
