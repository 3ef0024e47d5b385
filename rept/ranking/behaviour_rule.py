"""How training rows are scored for behaviours, in each field and in all fields together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rept.ranking.behaviour_scorer import BehaviourScorer, Direction, direction_scores
from rept.ranking.spectrum import Spectrum
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.tensors import unit

FOLDS = 5  # parts of a behaviour's queries that are held out in turn
ALIKE = 1e-12  # a deviation of scores that is mere rounding


@dataclass(frozen=True)
class FieldRule:
    """How the rows of one field are scored: each behaviour's direction (B), and median and deviation (B) of scores.

    The deviation is of the scores below the median or, where there are none, of those above it.
    """

    spectrum: Spectrum
    directions: Sequence[Direction]
    median: Tensor
    deviation: Tensor

    def part(self, start: int, end: int) -> FieldRule:
        """The rule of some behaviours only."""
        here = slice(start, end)
        return FieldRule(self.spectrum, self.directions[here], self.median[here], self.deviation[here])

    def __call__(self, rows: Tensor) -> Tensor:
        """Scores (n B) of unit rows (n D) in deviations from the median; 0 where all rows are alike."""
        score = direction_scores(rows, self.spectrum, self.directions)
        informative = (self.deviation > ALIKE) & rows.any(1, keepdim=True)
        return torch.where(informative, (score - self.median) / self.deviation, 0)


@dataclass(frozen=True)
class BehaviourRule:
    """Scores rows for all behaviours.

    Attributes:
        weight: of each field for each behaviour (F B), so that the joined scores are in deviations as those of a field
            are; all 0 where the fields are joined without weights.
        held_out: the scores (k) of each behaviour's queries, each by the direction of those outside its fold. Only
            behaviours with at least two queries have some.
        clean: for each behaviour, the scores of the clean queries, each by a direction that is contrasted with those
            outside its fold only; empty where there are fewer than `FOLDS`.
    """

    scorer: BehaviourScorer
    fields: Mapping[Key, FieldRule]
    weight: Tensor
    held_out: Mapping[str, Tensor] = field(default_factory=dict)
    clean: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __call__(self, rows: Mapping[Key, Tensor]) -> Tensor:
        """Scores (n B) from fields (n D) in any scale."""
        return self.scorer.join(field_scores(self.fields, rows), self.weight).float()


def field_scores(fields: Mapping[Key, FieldRule], rows: Mapping[Key, Tensor]) -> Tensor:
    """Scores (F n B) of rows in each field, in deviations."""
    return torch.stack([rule(unit(rows[key].to(rule.median.device).double())) for key, rule in fields.items()])


def without_folds(behaviours: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """For each behaviour in turn its queries without each of `FOLDS` parts."""
    return [
        sorted(set(queries) - set(sorted(queries)[fold::FOLDS]))
        for queries in behaviours.values()
        for fold in range(FOLDS)
    ]


def held_out_fields(
    query: AttributionStore, fields: Mapping[Key, FieldRule], behaviours: Mapping[str, Sequence[int]], first: int
) -> dict[str, Tensor]:
    """Scores (F k) of each behaviour's queries in each field, by row, each by the direction of those outside its fold.

    Args:
        fields: with the columns of `without_folds` from column ``first``.
    """
    members = {name: torch.tensor(sorted(queries)) for name, queries in behaviours.items()}
    found = {name: torch.zeros(len(fields), len(own), dtype=torch.float64) for name, own in members.items()}
    for block in query.blocks(list(fields)):
        scores = field_scores(fields, block.fields).cpu()
        for i, (name, own) in enumerate(members.items()):
            inside = torch.isin(block.row, own)
            place = torch.searchsorted(own, block.row[inside])
            found[name][:, place] = scores[:, inside, first + FOLDS * i + place % FOLDS]
    return found
