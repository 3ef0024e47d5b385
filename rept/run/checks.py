"""Checks of a configuration before anything slow starts; none needs the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.query_groups import read_groups
from rept.errors import UsageError
from rept.ranking.behaviour_scorer import BehaviourScorer
from rept.ranking.scorer import Scorer
from rept.signatures.extractor import Extractor
from rept.store.shards import check_shards
from rept.types import Side


def check_numbers(config: AttributeConfig) -> None:
    """Raises UsageError for a count below its minimum or a store setting out of its range."""
    for key, value, least in (
        ("top_k", config.top_k, 1),
        ("bottom_k", config.bottom_k, 0),
        ("max_new_tokens", config.max_new_tokens, 1),
        ("tokens.hits", config.tokens.hits, 0),
    ):
        if value < least:
            raise UsageError(f"Expected {key} to be at least {least}, but got {value}.")
    check_shards(config.store.dtype, config.store.shard_rows)


def check_behaviours(config: AttributeConfig, queries: Collection[int]) -> None:
    """Raises UsageError for a behaviour scorer that cannot be built, or a behaviours file that names other queries."""
    build(config.behaviour_scorer, BehaviourScorer)
    if config.behaviours:
        read_groups(config.behaviours, queries)


def check_data(datamodule: AttributionDataModule, sides: Iterable[Side]) -> None:
    """Raises UsageError if a side has no row."""
    for side in sides:
        if not len(datamodule.source(side)):
            raise UsageError(f"Expected at least one {side} row, but the data set is empty.")


def check_fields(extractor: Extractor, scorer: Scorer) -> None:
    """Raises UsageError if the scorer reads fields that the extractor does not give."""
    missing = [field for field in scorer.needs if field not in extractor.fields]
    if missing:
        raise UsageError(
            f"{type(scorer).__name__} reads {', '.join(missing)}, but {type(extractor).__name__} gives only "
            f"{', '.join(extractor.fields)}: choose another scorer, or other extractor.fields."
        )
