"""Fits a scorer to the training rows; several processes share the reading, and get the same result as one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rept.distributed.collectives import gathered, process
from rept.ranking.scorer import Scorer
from rept.store.reader import AttributionStore
from rept.types import Key

SiteLayer = tuple[str, int]
_NUMBERS_AT_ONCE = 2**20  # of random numbers, so that their memory does not grow with the store


def fit_scorers(
    scorer: Scorer,
    train: AttributionStore,
    places: Sequence[SiteLayer],
    device: torch.device | str,
    rows_per_block: int,
    together: bool = False,
) -> dict[SiteLayer, Scorer]:
    """A copy of the scorer for each site and layer, fitted there; the rows are read only if it learns from them.

    Args:
        together: all ranks of the run call this. Where the scorer learns from a sample (``fit_rows``), each rank reads
            its share of the sample; else each site and layer is fitted by one rank, and the others get the result.
    """
    fitted = {place: copy.deepcopy(scorer) for place in places}
    if type(scorer).fit is Scorer.fit:
        return fitted
    keys = {place: [Key(*place, field) for field in scorer.needs] for place in places}
    if scorer.fit_rows is not None:
        order = train.attributed_in_order
        rows = order[reservoir_sample(len(order), scorer.fit_rows, scorer.fit_seed)]
        sample = train.read(rows, sum(keys.values(), []), together)
        for place, own in fitted.items():
            own.fit([{key.field: sample.pop(key).to(device) for key in keys[place]}])
        return fitted
    rank, ranks = process() if together else (0, 1)
    for place in places[rank::ranks]:
        fitted[place].fit(_TrainingRows(train, keys[place], device, rows_per_block))
    if ranks > 1:
        _exchange(fitted, places[rank::ranks], device)
    return fitted


def reservoir_sample(count: int, size: int, seed: int) -> np.ndarray:
    """A uniform sample (min(count, size)) of the numbers 0..count-1: Vitter 1985, algorithm R."""
    kept = np.arange(min(count, size))
    generator = torch.Generator().manual_seed(seed)
    for start in range(size, count, _NUMBERS_AT_ONCE):
        number = torch.arange(start, min(start + _NUMBERS_AT_ONCE, count))
        place = (torch.rand(len(number), generator=generator, dtype=torch.float64) * (number + 1)).long()
        inside = place < size
        kept[place[inside].numpy()] = number[inside].numpy()  # of several numbers for a place, the last one stays
    return kept


@dataclass(frozen=True)
class _TrainingRows:
    """Blocks of fields for a scorer's ``fit``, read from the store at each iteration."""

    train: AttributionStore
    keys: Sequence[Key]
    device: torch.device | str
    rows_per_block: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for block in self.train.blocks(self.keys, self.rows_per_block):
            yield {key.field: block.fields[key].to(self.device) for key in self.keys}


def _exchange(fitted: dict[SiteLayer, Scorer], own: Sequence[SiteLayer], device: torch.device | str) -> None:
    """Gives each copy the attributes of the one that its rank has fitted, with tensors on ``device``."""
    share = {place: _moved(vars(fitted[place]), "cpu") for place in own}
    for states in gathered(share):
        for place, state in states.items():
            vars(fitted[place]).update(_moved(state, device))


def _moved(value: Any, device: torch.device | str) -> Any:
    """A value with its tensors on ``device``, those in dictionaries and lists too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict:
        return {name: _moved(one, device) for name, one in value.items()}
    return [_moved(one, device) for one in value] if type(value) is list else value
