"""Near-duplicate hits told as one: which hits of a query say the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rept.results import Hit

ALIKE = 0.8  # share of common character runs above which two texts count as near-duplicates
RUN = 5  # characters in a run: long enough to keep words apart, and free of any script's idea of a word
READ = 4000  # characters of a text that are compared


def fold(hits: Sequence[Hit]) -> list[int]:
    """For each hit, the position of the hit that stands for it: its own, or that of a better one which it repeats.

    A hit repeats the first better one whose text (prompt and response, in lower case, white space collapsed, its first
    4,000 characters) shares at least 80 % of all runs of five characters in either: ``|A & B| >= 0.8 |A | B|``. Where
    the run itself has grouped its hits (``Hit.group``), its groups are used instead.

    Args:
        hits: of one query, best first.
    """
    heads: list[int] = []
    found = []
    for position, hit in enumerate(hits):
        head = next((other for other in heads if _same(hits[other], hit)), position)
        if head == position:
            heads.append(position)
        found.append(head)
    return found


def _same(one: Hit, other: Hit) -> bool:
    if one.group is not None or other.group is not None:
        return one.group == other.group
    a, b = _runs(one.prompt, one.response), _runs(other.prompt, other.response)
    if min(len(a), len(b)) < ALIKE * max(len(a), len(b)):
        return False
    common = len(a & b)
    return common >= ALIKE * (len(a) + len(b) - common)


@lru_cache(maxsize=4096)
def _runs(prompt: str, response: str) -> frozenset[str]:
    text = " ".join(f"{prompt}\n{response}".lower().split())[:READ]
    return frozenset(text[i : i + RUN] for i in range(max(1, len(text) - RUN + 1)))
