"""Text from data made safe to show in a terminal."""

from __future__ import annotations

import unicodedata

_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """``text`` with control characters, escape sequences and bidi marks written as their code points; newlines stay."""
    return "".join(c if c == "\n" or c.isprintable() and c not in _BIDI else _escaped(c) for c in text)


def shorten(text: str, width: int) -> str:
    """One visible line of at most ``width`` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _escaped(char: str) -> str:
    if char == "\t" or unicodedata.category(char) == "Zs":
        return " "
    return f"\\u{{{ord(char):x}}}"
