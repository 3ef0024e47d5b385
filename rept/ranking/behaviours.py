"""Ranks the training rows once for each behaviour, by its queries together.

Mean and principal axes of each field (`rept.ranking.spectrum`), directions, scales and the fields' weights are found on
samples of the rows; then one pass over the store computes the scores. Of the queries, only their
number and mean are kept: the rows have norm 1, so their scatter follows from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rept.data.behaviours import CLEAN
from rept.distributed.collectives import gathered, process
from rept.ranking.behaviour_rule import (
    ALIKE,
    FOLDS,
    BehaviourRule,
    FieldRule,
    field_scores,
    held_out_fields,
    without_folds,
)
from rept.ranking.behaviour_scorer import BehaviourScorer, Examples, deviations, direction_scores
from rept.ranking.fitting import reservoir_sample
from rept.ranking.rank import Sink
from rept.ranking.spectrum import Spectrum, spectrum
from rept.ranking.topk import Hits, TopK
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.tensors import unit

SPECTRUM_ROWS = 65536  # that mean and principal axes of a field are computed from at least, as a sample,
ROWS_PER_DIMENSION = 16  # and for each of its dimensions
SAMPLE = 32768  # rows that scales and candidates are compared on
EXAMPLES = 128  # behaviours, folds included, whose candidates are compared at once: 370 MB with 11 candidates each
_AT_ONCE = 2048


@dataclass(frozen=True)
class Means:
    """The number and the mean (D) of the unit rows of some queries in one field; zero rows do not count."""

    count: int
    mean: Tensor

    @property
    def scatter(self) -> float:
        """Sum of squared distances from the mean."""
        return self.count * max(0.0, 1.0 - float(self.mean.square().sum()))

    def error(self, rows: Spectrum) -> float:
        """Expected squared error of the mean, with the training rows' own variance as one more observation."""
        return (self.scatter + rows.trace) / self.count**2 if self.count else 0.0


def fit_behaviours(
    scorer: BehaviourScorer,
    train: AttributionStore,
    query: AttributionStore,
    behaviours: Mapping[str, Sequence[int]],
    clean: Sequence[int],
    keys: Sequence[Key],
    device: torch.device | str = "cpu",
    together: bool = False,
) -> BehaviourRule:
    """Learns how rows are scored for each behaviour; the same result for any number of ranks.

    Args:
        behaviours: query numbers by name.
        clean: queries that the behaviours are contrasted with; may be empty.
        keys: the fields to use.
        together: all ranks of the run call this, and share the fields and the reading.
    """
    rank, ranks = process() if together else (0, 1)
    own = {key: _spectrum(train, key, device) for key in keys[rank::ranks]}
    if ranks > 1:
        parts = gathered({key: one.to("cpu") for key, one in own.items()})
        own = {key: one.to(device) for part in parts for key, one in part.items()}
    several = {name: queries for name, queries in behaviours.items() if len(queries) > 1}
    with_folds = [*behaviours.values(), *without_folds(several)]
    others = without_folds({CLEAN: clean}) if len(clean) >= FOLDS else []
    fields = {}
    for key in keys:
        means = query_means(query, key, [*with_folds, clean, *others], device)
        means, (ordinary, *some_clean) = means[: len(with_folds)], means[len(with_folds) :]
        examples = [contrast(one, ordinary, own[key]) for one in means]
        examples += [contrast(one, other, own[key]) for one in means[: len(behaviours)] for other in some_clean]
        some = [examples[start : start + EXAMPLES] for start in range(0, len(examples), EXAMPLES)]
        fields[key] = _joined([_field_rule(scorer, train, key, own[key], part, device, together) for part in some])
    held_out = held_out_fields(query, fields, several, len(behaviours))
    unlike = held_out_fields(query, fields, dict.fromkeys(behaviours, clean), len(with_folds)) if others else {}
    fields = {key: rule.part(0, len(behaviours)) for key, rule in fields.items()}
    held_out, unlike = ({name: z.to(device) for name, z in found.items()} for found in (held_out, unlike))
    weight = _weights(scorer, train, fields, [held_out.get(name) for name in behaviours], together)
    column = {name: weight[:, i, None] for i, name in enumerate(behaviours)}
    scores = (
        {name: scorer.join(z[:, :, None], column[name])[:, 0].float().cpu() for name, z in found.items()}
        for found in (held_out, unlike)
    )
    return BehaviourRule(scorer, fields, weight, *scores)


def query_means(
    query: AttributionStore, key: Key, groups: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> list[Means]:
    """The means of groups of queries, from one pass over their store."""
    members = [torch.tensor(sorted(group), dtype=torch.int64) for group in groups]
    total: list[Tensor] = [torch.zeros((), dtype=torch.float64, device=device)] * len(groups)
    count = [0] * len(groups)
    for row, rows in _in_order(query, key, query.attributed, device):
        for i, group in enumerate(members):
            chosen = rows[torch.isin(row, group).to(device)]
            total[i] = total[i] + chosen.sum(0)
            count[i] += int(chosen.any(1).sum())
    return [Means(n, one / max(n, 1)) for n, one in zip(count, total, strict=True)]


def contrast(behaviour: Means, clean: Means, rows: Spectrum) -> Examples:
    """The shift of a behaviour's queries from ordinary ones.

    Ordinary are the training rows, moved towards the clean queries by the share of their distance that is no error of
    their mean: ``max(0, 1 - error / |m_clean - mu|^2)`` (James and Stein 1961).
    """
    if not behaviour.count:
        return Examples(1, torch.zeros_like(rows.mean), 0.0)
    shift, noise = behaviour.mean - rows.mean, behaviour.error(rows)
    if clean.count:
        moved, error = clean.mean - rows.mean, clean.error(rows)
        share = max(0.0, 1 - error / max(float(moved.square().sum()), 1e-300))
        shift, noise = shift - share * moved, noise + share**2 * error
    return Examples(behaviour.count, shift, noise)


def rank_behaviours(
    train: AttributionStore,
    rule: BehaviourRule,
    count: int,
    *,
    top_k: int = 100,
    part: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    on_block: Callable[[int], None] | None = None,
    sinks: Sequence[Sink] = (),
) -> Hits:
    """The best rows of each of ``count`` behaviours in a share of the store; as `rept.ranking.rank.rank`."""
    best = TopK(count, top_k, device=device)
    for block in train.blocks(list(rule.fields), part=part):
        score = rule({key: value.to(device) for key, value in block.fields.items()})
        best.add(block.row.to(device), score)
        for sink in sinks:
            sink(block.row, score.cpu())
        if on_block is not None:
            on_block(len(block.row))
    return best.hits()


def _weights(
    scorer: BehaviourScorer,
    train: AttributionStore,
    fields: Mapping[Key, FieldRule],
    held_out: Sequence[Tensor | None],
    together: bool,
) -> Tensor:
    """Weights (F B) of the fields, in units in which the lower half of the joined scores has a deviation of 1."""
    found: list[Tensor] = []
    for first in range(0, len(held_out), EXAMPLES):
        part = {key: rule.part(first, first + EXAMPLES) for key, rule in fields.items()}
        blocks = _drawn_blocks(train, list(fields), together)
        z = torch.cat([field_scores(part, rows).float() for rows in blocks], dim=1)
        for i, queries in enumerate(held_out[first : first + EXAMPLES]):
            one = z[:, :, i].double()
            weight = torch.zeros(len(one), dtype=one.dtype, device=one.device)
            if queries is not None:
                weight = scorer.weights(queries, one)
            _, below, above = deviations((weight @ one)[:, None])
            scale = below if below > ALIKE else above
            found.append(weight / scale if scale > ALIKE else torch.zeros_like(weight))
    return torch.stack(found, dim=1)


def _spectrum(train: AttributionStore, key: Key, device: torch.device | str) -> Spectrum:
    width = train.read([], [key])[key].shape[1]
    some = reservoir_sample(len(train.attributed), max(SPECTRUM_ROWS, ROWS_PER_DIMENSION * width), seed=0)
    found = _in_order(train, key, train.attributed[np.sort(some)], device)
    blocks = (rows[rows.any(1)] for _, rows in found)
    return spectrum(filter(len, blocks), width).to(device)


def _in_order(
    store: AttributionStore, key: Key, numbers: np.ndarray, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers (n) and unit rows (n D), ascending: so that sums are the same whichever ranks wrote the shards."""
    for start in range(0, len(numbers), _AT_ONCE):
        row = numbers[start : start + _AT_ONCE]
        yield torch.from_numpy(row), unit(store.read(row, [key])[key].double().to(device))


def _drawn_blocks(train: AttributionStore, keys: Sequence[Key], together: bool) -> Iterator[dict[Key, Tensor]]:
    """Fields (n D) of the rows on which scales, candidates and fields are compared; always the same rows."""
    drawn = train.attributed[reservoir_sample(len(train.attributed), SAMPLE, seed=0)]
    for start in range(0, len(drawn), _AT_ONCE):
        yield train.read(drawn[start : start + _AT_ONCE], keys, together)


def _joined(parts: Sequence[FieldRule]) -> FieldRule:
    """The rule of all behaviours in one field, from those of some each."""
    directions = [direction for part in parts for direction in part.directions]
    median, deviation = torch.cat([part.median for part in parts]), torch.cat([part.deviation for part in parts])
    return FieldRule(parts[0].spectrum, directions, median, deviation)


def _field_rule(
    scorer: BehaviourScorer,
    train: AttributionStore,
    key: Key,
    rows: Spectrum,
    examples: Sequence[Examples],
    device: torch.device | str,
    together: bool,
) -> FieldRule:
    """Chooses each behaviour's direction, and the scale of its scores, on a sample of the training rows."""
    candidates = [scorer.directions(one, rows) for one in examples]
    every = [direction for group in candidates for direction in group]
    blocks = (block[key].double().to(device) for block in _drawn_blocks(train, [key], together))
    scores = torch.cat([direction_scores(unit(block), rows, every) for block in blocks])  # (M, all candidates)
    chosen, start = [], 0
    for one, group in zip(examples, candidates, strict=True):
        chosen.append(start + scorer.choose(one, rows, group, scores[:, start : start + len(group)]))
        start += len(group)
    median, below, above = deviations(scores[:, chosen])
    scale = torch.where(below > ALIKE, below, above)  # if at least half of the rows have the lowest score
    return FieldRule(rows, [every[i] for i in chosen], median, scale)
