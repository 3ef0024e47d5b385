"""The interface of repair methods, which estimate a correction from the states of traced rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rept.correction.correction import Correction
from rept.correction.evidence import PLACES, At, Evidence


class RepairMethod(ABC):
    """Estimates the correction that switches one behaviour off, at one layer and place.

    A method is a class with ``__call__``, named in a YAML by its dotted path. Which layer, place and strength are used
    is chosen on training rows, see :mod:`rept.correction.choice`.

    Attributes:
        places: where states may be read; each is tried.
        strengths: factors of the correction's change; each is tried.
        needs_clean_answers: whether it reads `Rows.clean`, for which the model answers the rows' prompts.
    """

    places: Sequence[At] = PLACES
    strengths: Sequence[float] = (1.0,)
    needs_clean_answers: bool = False

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Correction:
        """Returns the correction at strength 1."""

    def trained(self, chosen: Correction, evidence: Evidence) -> Correction:
        """Returns the chosen correction after what would take too long for every candidate; by default as it is."""
        return chosen
