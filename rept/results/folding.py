"""Which hits of a query the page folds into one."""

from __future__ import annotations

from collections.abc import Sequence

from rept.results.records import Hit


def fold(hits: Sequence[Hit]) -> list[int]:
    """For each hit, the position of the hit that stands for it: the best of its group.

    Args:
        hits: of one query, best first.
    """
    first: dict[int, int] = {}
    return [first.setdefault(hit.group, i) for i, hit in enumerate(hits)]
