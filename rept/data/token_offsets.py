"""Token ids with their character positions, from which the response mask follows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from os.path import commonprefix  # of any strings

from rept.data.chat_template import Place, Rendered


class Tokens:
    """Token ids of a text and the characters of each; starts and ends ascend, and together they cover the text.

    Byte-level tokenizers may leave a token's leading space out of its range, and normalizers drop characters: what no
    token covers is assigned to the next one. All tokens of one multi-byte character cover it. ``offsets`` are the
    (start, end) characters of each token, as the tokenizer returns them.
    """

    def __init__(self, ids: list[int], offsets: Sequence[tuple[int, int]]) -> None:
        self.ids = ids
        self.ends = list(accumulate((end for _, end in offsets), max))
        self.starts = [min(start, last) for (start, _), last in zip(offsets, [0, *self.ends], strict=False)]

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Each token's characters, starting where the previous token ends: joined, they give the text."""
        return list(zip([0, *self.ends], self.ends, strict=False))

    def overlapping(self, start: int, end: int) -> range:
        """Returns the tokens that contain any character from ``start`` to ``end``."""
        return range(bisect_right(self.ends, start), bisect_left(self.starts, end))

    def response(self, whole: Rendered, special: Collection[int]) -> range:
        """Returns the response's tokens: from the first that contains any of its text to the end of its turn.

        The turn ends with the first special token after the response, or else with the last text that is not white
        space.
        """
        return self._turn(whole.response, whole.text, len(self.ids), special)

    def earlier_response(self, whole: Rendered, place: Place, special: Collection[int]) -> range:
        """Returns the tokens of an earlier assistant turn, to the end of what the template writes after it.

        This is the text that also follows the last response: an end-of-turn token, but not the next turn's header.
        """
        after = commonprefix([whole.text[place.end :], whole.text[whole.response.end :]])
        text = whole.text[: place.end + len(after)]
        return self._turn(place, text, bisect_left(self.starts, len(text)), special)

    def _turn(self, place: Place, text: str, limit: int, special: Collection[int]) -> range:
        """The tokens of a turn in a text that ends with it; only tokens before ``limit`` can end it."""
        tokens = self.overlapping(place.start, place.end)
        first, stop = tokens.start, tokens.stop
        if first < len(self.ids) and self.ids[first] in special and self.starts[first] < place.start:
            first += 1  # a token such as Phi-3's <|assistant|>, which includes the white space after it
        if stop > first and self.ids[stop - 1] in special and self.ends[stop - 1] > place.end:
            return range(first, stop)  # an end-of-turn token that includes the white space before it
        for i in range(stop, limit):
            if self.ids[i] in special:
                return range(first, i + 1)
        return range(first, max(stop, bisect_left(self.starts, len(text.rstrip()))))
