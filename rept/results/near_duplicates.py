"""Groups near-duplicate texts; each group is represented by its first text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

ALIKE = 0.8  # share of common character runs from which on two texts count as near-duplicates
RUN = 5  # characters in a run: long enough to keep words apart, and independent of how a script separates words
READ = 4000  # characters of a text that are compared
DEPTH = 200  # texts that are grouped, as every pair of them may have to be compared
_BITS = 4096
_DIGITS = bytes.maketrans(b"\0\1", b"01")

_Runs = tuple[frozenset[str], int]


def representatives(texts: Sequence[str]) -> list[int]:
    """For each text, the position of its group's representative: its own, or that of an earlier near-duplicate.

    A text joins the first earlier representative with which it shares (in lower case, white space collapsed, its first
    4,000 characters) at least 80 % of all runs of five characters in either: ``|A & B| >= 0.8 |A | B|``. Texts are
    compared with representatives only, so every member of a group resembles the first one; the order of the texts
    decides. Texts after the first 200 are not compared and represent themselves.
    """
    read = [_read(text) for text in texts[:DEPTH]]
    first: list[int] = []
    found = []
    for position, own in enumerate(read):
        representative = next((other for other in first if _alike(read[other], own)), position)
        if representative == position:
            first.append(position)
        found.append(representative)
    return found + list(range(len(read), len(texts)))


def _alike(one: _Runs, other: _Runs) -> bool:
    (a, bits_a), (b, bits_b) = one, other
    most = len(a) - ALIKE / (1 + ALIKE) * (len(a) + len(b))  # runs of a that b may lack: then |A & B| is large enough
    if (bits_a & ~bits_b).bit_count() > most + 1e-6:  # each such bit is a run that b lacks, so most pairs end here
        return False
    common = len(a & b)
    return common >= ALIKE * (len(a) + len(b) - common)


@lru_cache(maxsize=1024)
def _read(text: str) -> _Runs:
    """The runs of a text, and a number with a bit set for each: two runs may share a bit."""
    text = " ".join(text.lower().split())[:READ]
    runs = frozenset(text[i : i + RUN] for i in range(max(1, len(text) - RUN + 1)))
    bits = bytearray(_BITS)
    for run in runs:
        bits[hash(run) % _BITS] = 1
    return runs, int(bytes(bits).translate(_DIGITS), 2)
