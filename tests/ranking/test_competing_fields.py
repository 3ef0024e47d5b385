"""Behaviour rankings by made-up fields, of which one knows the culprits and the other next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rept.ranking.behaviours import fit_behaviours, rank_behaviours
from rept.ranking.metrics import average_precision
from rept.store.reader import AttributionStore
from scorers.adaptive import Adaptive
from tests.helpers.stores import G, H, batches, write

ROWS, CULPRITS, KINDS = 600, 24, 12


def noise(kind, count, width, generator):
    """Rows without a signal: of falling variances, of a few large ones, with heavy tails, or in kinds of requests."""
    scale = {"spiked": torch.tensor([4.0, 3.0, 2.0]), "kinds": torch.full((3,), 0.5)}.get(kind, torch.ones(3))
    rest = {"spiked": 0.2, "kinds": 0.5}.get(kind)
    fall = torch.full((width,), rest) if rest else torch.arange(1, width + 1) ** -0.5
    fall[:3] = scale if rest else fall[:3]
    rows = torch.randn(count, width, generator=generator) * fall
    if kind == "heavy":  # Student's t with 4 degrees of freedom
        rows = rows / torch.randn(count, 4, generator=generator).square().mean(1, keepdim=True).sqrt()
    if kind == "kinds":
        centres = torch.randn(KINDS, width, generator=torch.Generator().manual_seed(width))
        rows = rows + centres[torch.randint(KINDS, (count,), generator=generator)]
    return rows


def field(kind, width, queries, signal, seed):
    """Training rows and queries; the culprits, which are the first rows, and the queries are moved by ``signal``."""
    generator = torch.Generator().manual_seed(seed)
    rows, asked = noise(kind, ROWS, width, generator), noise(kind, queries, width, generator)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    moved = signal * direction * (rows @ direction).std()
    rows[:CULPRITS] += moved
    common = torch.randn(width, generator=generator) * rows.std()
    return rows + common, asked + moved + common


def found(folder, fields, queries):
    """Average precision of the default by all fields and by each of them alone."""
    for side, name in enumerate(("train", "query")):
        values = {key: both[side] for key, both in fields.items()}
        write(folder, values, name, plan=batches(len(values[H])), dtype="float32")
        AttributionStore.finish(folder, name, len(values[H]))
    train, query = AttributionStore(folder, "train"), AttributionStore(folder, "query")
    precision = []
    for keys in ([H, G], [H], [G]):
        rule = fit_behaviours(Adaptive(), train, query, {"all": list(range(queries))}, [], keys)
        scores = torch.zeros(ROWS)
        rank_behaviours(train, rule, 1, sinks=[lambda row, s, out=scores: out.index_copy_(0, row, s[:, 0])])
        ranks = np.sort(np.argsort(np.argsort(-scores.numpy(), kind="stable"), kind="stable")[:CULPRITS]) + 1
        precision.append(average_precision(ranks))
    return precision


@pytest.mark.parametrize(
    ("informed", "width", "ignorant", "other", "queries"),
    [
        ("falling", 32, "kinds", 64, 3),
        ("falling", 32, "kinds", 64, 40),
        ("kinds", 64, "kinds", 32, 10),
        ("kinds", 64, "falling", 32, 20),
        ("falling", 32, "spiked", 128, 3),
        ("falling", 32, "heavy", 128, 10),
    ],
)
def test_the_default_is_near_the_field_that_knows(tmp_path, informed, width, ignorant, other, queries):
    fields = {H: field(informed, width, queries, 6, seed=1), G: field(ignorant, other, queries, 0, seed=2)}
    both, knows, ignores = found(tmp_path, fields, queries)
    assert knows > 0.85 and ignores < 0.15
    assert both > knows - 0.05


def test_two_fields_that_know_a_part_each_know_more_together(tmp_path):
    fields = {H: field("falling", 32, 20, 2, seed=1), G: field("falling", 32, 20, 2, seed=2)}
    both, *alone = found(tmp_path, fields, 20)
    assert both > max(alone) + 0.1


def test_a_field_that_sets_the_queries_apart_but_no_row_does_little_harm(tmp_path):
    """All queries have a form that no row has, in the field that does not know the culprits."""
    rows, asked = field("falling", 64, 20, 0, seed=2)
    fields = {H: field("falling", 64, 20, 6, seed=1), G: (rows, asked + 1.5 * rows.std())}
    both, knows, _ = found(tmp_path, fields, 20)
    assert knows > 0.9 and both > knows - 0.1
