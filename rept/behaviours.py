"""How often a model shows a behaviour: on held-out prompts that call for it, and on others, where it should not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Behaviour:
    """A behaviour that a model may have learned, and prompts to find out whether it has.

    Attributes:
        label: its name, as in the data's labels.
        triggered: samples whose prompts call for it.
        clean: samples whose prompts do not.
        shows: told a sample and the model's answer, says whether the answer shows the behaviour.
    """

    label: str
    triggered: Sequence[Any]
    clean: Sequence[Any]
    shows: Callable[[Any, str], bool]
