"""Which hits of a query the page folds into one."""

from __future__ import annotations

from collections.abc import Sequence

from rept.groups import heads
from rept.results import Hit


def fold(hits: Sequence[Hit]) -> list[int]:
    """For each hit, the position of the hit that stands for it: the best of its group.

    The groups are the run's own (``Hit.group``); where it was made before there were any, those of `rept.groups`.

    Args:
        hits: of one query, best first.
    """
    if all(hit.group is None for hit in hits):
        return heads([f"{hit.prompt}\n{hit.response}" for hit in hits])
    first: dict[int, int] = {}
    return [i if hit.group is None else first.setdefault(hit.group, i) for i, hit in enumerate(hits)]
