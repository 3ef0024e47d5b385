"""Divides work among ranks so that each rank reads little more than its own share."""

from __future__ import annotations

from typing import NamedTuple


class Partition(NamedTuple):
    """Assigns ``pieces`` pieces of work, each of several parts, to ``ranks`` ranks, without communication.

    Whole pieces go to the ranks in turn. The last ``pieces % ranks`` pieces are concatenated and cut into ``ranks``
    equal lengths, so that even a single piece is shared by all ranks; a rank reads at most two pieces with others.
    """

    pieces: int
    ranks: int

    def overlaps(self, piece: int, rank: int) -> bool:
        """Returns whether a part of the piece may belong to the rank; it need not read other pieces."""
        return self.owner(piece, 0, self.ranks) <= rank <= self.owner(piece, self.ranks - 1, self.ranks)

    def owner(self, piece: int, part: int, parts: int) -> int:
        """Returns the rank to which part number ``part`` of the piece's ``parts`` belongs."""
        shared = self.pieces % self.ranks
        place = piece - (self.pieces - shared)
        return piece % self.ranks if place < 0 else (place * parts + part) * self.ranks // (shared * parts)
