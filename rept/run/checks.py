"""Checks of a configuration that need neither the model nor the data."""

from __future__ import annotations

from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.ranking.scorer import Scorer
from rept.signatures.extractor import Extractor
from rept.store.shards import check_shards


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


def check_fields(extractor: Extractor, scorer: Scorer) -> None:
    """Raises UsageError if the scorer reads fields that the extractor does not give."""
    missing = [field for field in scorer.needs if field not in extractor.fields]
    if missing:
        raise UsageError(
            f"{type(scorer).__name__} reads {', '.join(missing)}, but {type(extractor).__name__} gives only "
            f"{', '.join(extractor.fields)}: choose another scorer, or other extractor.fields."
        )
