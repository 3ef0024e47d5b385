"""Text from data made safe to show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")

# Characters that are invisible or change how the text around them reads: control and format characters, lone
# surrogates, line and paragraph separators. Newline, tab and the two joiners, which emoji and several scripts need, are
# safe. The report page uses the same class, as `UNSAFE_IN_JAVASCRIPT`.
UNSAFE = (
    r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e"
    r"\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
UNSAFE_IN_JAVASCRIPT = re.sub(r"\\U000(\w{5})", r"\\u{\1}", UNSAFE)
_UNSAFE = re.compile(UNSAFE)
# White space, and the punctuation of scripts that have none between words: there, a clause counts as a word.
_GAP = re.compile(r"[\s\u3000-\u3004\u3008-\u3020\u3030\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")


def replace_unsafe(text: str, replacement: Callable[[str], str]) -> str:
    """``text`` with each unsafe character replaced; a Windows line end becomes a newline."""
    return _UNSAFE.sub(lambda found: replacement(found[0]), text.replace("\r\n", "\n"))


def visible(text: str) -> str:
    """``text`` for a terminal: unsafe characters as their code points, such as ``\\u{1b}``; tabs as spaces."""
    return replace_unsafe(text.replace("\t", " "), lambda character: f"\\u{{{ord(character):x}}}")


def clip(text: str, width: int) -> str:
    """``text`` on one line, white space collapsed, cut to at most ``width`` characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + "…"


def clip_middle(text: str, most: int) -> str:
    """``text`` of at most ``most`` characters, with an ellipsis in place of what is left out of its middle."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def counted(reasons: Counter[str]) -> str:
    """Reasons with their counts, the most frequent first: "3 empty prompt, 1 empty response"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def format_count(amount: int, noun: str) -> str:
    """A number with its noun, such as "1 query" or "1,200 queries"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("ch") else "s")
    return f"{amount:,} {noun if amount == 1 else plural}"


def words_in(pieces: Iterable[tuple[str, T]]) -> Iterator[tuple[str, list[T]]]:
    """Yields the words of consecutive pieces without punctuation around them, each with the values of its pieces."""
    characters = ((character, value) for text, value in pieces for character in text)
    for space, run in groupby(characters, key=lambda one: _GAP.match(one[0]) is not None):
        letters, values = zip(*run, strict=True)
        if not space and (word := re.sub(r"^\W+|\W+$", "", "".join(letters))):
            yield word, list(values)
