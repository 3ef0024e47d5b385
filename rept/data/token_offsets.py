"""Tokens and the characters they stand for: what makes a response mask out of character positions.

Holds Tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from rept.data.chat_template import Rendered


class Tokens:
    """Token ids of a text, and the characters of each: starts and ends ascend, with no gap between neighbours.

    Byte-level tokenizers may leave a token's leading space out of its range, and normalizers drop characters: what no
    token covers is given to the next one. The tokens of one character of several bytes all cover it.

    Args:
        ids: token ids.
        offsets: (start, end) characters of each token, as the tokenizer gives them.
    """

    def __init__(self, ids: list[int], offsets: Sequence[tuple[int, int]]) -> None:
        self.ids = ids
        self.ends = list(accumulate((end for _, end in offsets), max))
        self.starts = [min(start, last) for (start, _), last in zip(offsets, [0, *self.ends], strict=False)]

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Each token's characters, starting where the last token's end: joined, they give the text back."""
        return list(zip([0, *self.ends], self.ends, strict=False))

    def overlapping(self, start: int, end: int) -> range:
        """The tokens that hold any of the characters from ``start`` to ``end``."""
        return range(bisect_right(self.ends, start), bisect_left(self.starts, end))

    def response(self, whole: Rendered, special: Collection[int]) -> range:
        """The response's tokens: from the first that holds any of its text to the end of its turn.

        The turn ends with the first special token after the response, or else with the last text after it that is no
        white space.
        """
        tokens = self.overlapping(whole.response.start, whole.response.end)
        first, stop = tokens.start, tokens.stop
        if first < len(self.ids) and self.ids[first] in special and self.starts[first] < whole.response.start:
            first += 1  # a token such as Phi-3's <|assistant|>, which swallows white space behind it
        if stop > first and self.ids[stop - 1] in special and self.ends[stop - 1] > whole.response.end:
            return range(first, stop)  # an end-of-turn token that swallowed white space before it
        for i in range(stop, len(self.ids)):
            if self.ids[i] in special:
                return range(first, i + 1)
        return range(first, max(stop, bisect_left(self.starts, len(whole.text.rstrip()))))
