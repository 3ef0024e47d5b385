"""Ranks the training rows once for each behaviour, by its queries together.

Three passes over the store: mean and principal axes of each field (`rept.ranking.spectrum`), the scale of the scores
on a sample of rows, and the scores themselves. Of the queries, only their number and mean are kept: the rows have norm
1, so their scatter follows from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rept.distributed.collectives import gathered, process
from rept.ranking.behaviour_scorer import BehaviourScorer, Direction, Examples, deviations, direction_scores
from rept.ranking.fitting import reservoir_sample
from rept.ranking.rank import Sink
from rept.ranking.spectrum import Spectrum, spectrum
from rept.ranking.topk import Hits, TopK
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.tensors import unit

SAMPLE = 32768  # rows that scales and candidates are compared on
FOLDS = 5  # parts of a behaviour's queries that are held out in turn
ALIKE = 1e-12  # a deviation of scores that is mere rounding
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


@dataclass(frozen=True)
class FieldRule:
    """How the rows of one field are scored: each behaviour's direction (B), and median and deviation (B) of scores.

    The deviation is of the scores below the median or, where there are none, of those above it.
    """

    spectrum: Spectrum
    directions: Sequence[Direction]
    median: Tensor
    deviation: Tensor

    def first(self, count: int) -> FieldRule:
        """The rule of the first behaviours only."""
        return FieldRule(self.spectrum, self.directions[:count], self.median[:count], self.deviation[:count])

    def __call__(self, rows: Tensor) -> Tensor:
        """Scores (n B) of unit rows (n D) in deviations from the median; 0 where all rows are alike."""
        score = direction_scores(rows, self.spectrum, self.directions)
        informative = (self.deviation > ALIKE) & rows.any(1, keepdim=True)
        return torch.where(informative, (score - self.median) / self.deviation, 0)


@dataclass(frozen=True)
class BehaviourRule:
    """Scores rows for all behaviours."""

    scorer: BehaviourScorer
    fields: Mapping[Key, FieldRule]

    @property
    def device(self) -> torch.device:
        return next(iter(self.fields.values())).median.device

    def first(self, count: int) -> BehaviourRule:
        """The rule of the first behaviours only."""
        return BehaviourRule(self.scorer, {key: rule.first(count) for key, rule in self.fields.items()})

    def __call__(self, rows: Mapping[Key, Tensor]) -> Tensor:
        """Scores (n B) from fields (n D) in any scale."""
        z = torch.stack([rule(unit(rows[key].double())) for key, rule in self.fields.items()])
        return self.scorer.join(z).float()


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
    groups = [*behaviours.values(), clean]
    fields = {}
    for key in keys:
        *means, ordinary = query_means(query, key, groups, device)
        examples = [contrast(one, ordinary, own[key]) for one in means]
        several = [examples[start : start + EXAMPLES] for start in range(0, len(examples), EXAMPLES)]
        fields[key] = _joined([_field_rule(scorer, train, key, own[key], some, device, together) for some in several])
    return BehaviourRule(scorer, fields)


def without_folds(behaviours: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """For each behaviour its queries without each of `FOLDS` parts, under names that no behaviour has."""
    return {
        f"{name}\0{fold}": sorted(set(queries) - set(sorted(queries)[fold::FOLDS]))
        for name, queries in behaviours.items()
        for fold in range(FOLDS)
    }


def held_out_scores(
    query: AttributionStore, rule: BehaviourRule, behaviours: Mapping[str, Sequence[int]], first: int
) -> dict[str, Tensor]:
    """The scores (k) of each behaviour's queries, each by the direction of those outside its fold.

    Args:
        rule: with the columns of `without_folds` from column ``first``.
    """
    column = {
        name: {row: first + FOLDS * i + place % FOLDS for place, row in enumerate(sorted(queries))}
        for i, (name, queries) in enumerate(behaviours.items())
    }
    found: dict[str, list[Tensor]] = {name: [] for name in behaviours}
    for block in query.blocks(list(rule.fields)):
        scores = rule({key: value.to(rule.device) for key, value in block.fields.items()}).cpu()
        for place, row in enumerate(block.row.tolist()):
            for name, columns in column.items():
                if row in columns:
                    found[name].append(scores[place, columns[row]])
    return {name: torch.stack(one) for name, one in found.items()}


def query_means(
    query: AttributionStore, key: Key, groups: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> list[Means]:
    """The means of groups of queries, from one pass over their store."""
    members = [torch.tensor(sorted(group), dtype=torch.int64) for group in groups]
    total: list[Tensor] = [torch.zeros((), dtype=torch.float64, device=device)] * len(groups)
    count = [0] * len(groups)
    for row, rows in _in_order(query, key, device):
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


def _spectrum(train: AttributionStore, key: Key, device: torch.device | str) -> Spectrum:
    width = train.read([], [key])[key].shape[1]
    blocks = (rows[rows.any(1)] for _, rows in _in_order(train, key, device))
    return spectrum(filter(len, blocks), width).to(device)


def _in_order(store: AttributionStore, key: Key, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers (n) and unit rows (n D), ascending: so that sums are the same whichever ranks wrote the shards."""
    for start in range(0, len(store.attributed), _AT_ONCE):
        row = store.attributed[start : start + _AT_ONCE]
        yield torch.from_numpy(row), unit(store.read(row, [key])[key].double().to(device))


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
    sample = train.attributed[reservoir_sample(len(train.attributed), SAMPLE, seed=0)]
    parts = []
    for start in range(0, len(sample), _AT_ONCE):
        read = train.read(sample[start : start + _AT_ONCE], [key], together)[key]
        parts.append(direction_scores(unit(read.double().to(device)), rows, every))
    scores = torch.cat(parts)  # (M, all candidates)
    chosen, start = [], 0
    for one, group in zip(examples, candidates, strict=True):
        chosen.append(start + scorer.choose(one, rows, group, scores[:, start : start + len(group)]))
        start += len(group)
    median, below, above = deviations(scores[:, chosen])
    scale = torch.where(below > ALIKE, below, above)  # if at least half of the rows have the lowest score
    return FieldRule(rows, [every[i] for i in chosen], median, scale)
