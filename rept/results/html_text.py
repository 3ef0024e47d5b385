"""Text and numbers as the page shows them."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

_KEPT = "\n\t\u200c\u200d"  # the joiners belong to emoji and to Persian, Hindi and other scripts


def chips(text: str) -> Markup:
    """Escaped text in which control, format and other unseen characters stand as boxed code points.

    The same as ``put`` in core.js: nobody should have to guess what hides in a text.
    """
    return Markup("").join(_chip(c) if _unseen(c) else escape(c) for c in text)


def clip(text: str, width: int) -> str:
    """White space collapsed, and at most so many characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + "…"


def number(value: float) -> str:
    """Three decimals, or three digits where these would not show; a true minus sign."""
    plain = f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
    return plain.replace("-", "−")


def count(amount: int, noun: str) -> str:
    """A number and its noun, in the plural where it needs it."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def _unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _KEPT


def _chip(character: str) -> Markup:
    name = "CR" if character == "\r" else f"U+{ord(character):04X}"
    return Markup('<span class="unseen">{}</span>').format(name)
