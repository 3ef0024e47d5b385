"""Who does what: pieces of work, each of some parts, dealt out so that a rank looks into its own share alone."""

from __future__ import annotations

from typing import NamedTuple


class Deal(NamedTuple):
    """Gives ``pieces`` pieces of work to ``ranks`` ranks, by their numbers alone, so that every rank knows it unasked.

    Whole pieces go to the ranks in turn. What is left over, fewer pieces than ranks, is laid end to end and cut into
    equal lengths, one for each rank: so a single piece is still shared by all, and no rank looks into more than two
    pieces that it does not have to itself.
    """

    pieces: int
    ranks: int

    @property
    def _left(self) -> int:
        return self.pieces % self.ranks

    def concerns(self, piece: int, rank: int) -> bool:
        """Whether a part of the piece may be this rank's; only then need it look."""
        place = piece - (self.pieces - self._left)  # among those left over
        if place < 0:
            return piece % self.ranks == rank
        return rank * self._left < (place + 1) * self.ranks and (rank + 1) * self._left > place * self.ranks

    def holder(self, piece: int, part: int, parts: int) -> int:
        """The rank that does the piece's part number ``part`` of ``parts``."""
        place = piece - (self.pieces - self._left)
        if place < 0:
            return piece % self.ranks
        return (place * parts + part) * self.ranks // (self._left * parts)
