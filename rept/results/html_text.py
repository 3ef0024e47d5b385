"""Text and numbers as HTML shows them."""

from __future__ import annotations

from markupsafe import Markup, escape

from rept.utils.text import replace_unsafe


def visible_html(text: str) -> Markup:
    """``text`` escaped, with unsafe characters as code points in boxes; ``put`` in core.js does the same."""
    return Markup(replace_unsafe(str(escape(text)), _boxed))


def format_number(value: float) -> str:
    """Three decimals, or three digits where all decimals would be 0; with a true minus sign."""
    plain = f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
    return plain.replace("-", "−")


def format_count(amount: int, noun: str) -> str:
    """A number with its noun, such as "1 query" or "1,200 queries"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def _boxed(character: str) -> str:
    name = "CR" if character == "\r" else f"U+{ord(character):04X}"
    return f'<span class="unseen">{name}</span>'
