"""Text and numbers as HTML shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from rept.utils.text import clip, format_count, replace_unsafe, visible


def html_environment(loader: BaseLoader | None = None, **filters: Callable[..., Any]) -> Environment:
    """Templates that escape what they are given, with filters for text and numbers and more of your own."""
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    for function in (clip, format_count, format_number, visible, visible_html):
        environment.filters[function.__name__] = function
    environment.filters |= filters
    return environment


def visible_html(text: str) -> Markup:
    """``text`` escaped, with unsafe characters as code points in boxes; ``put`` in core.js does the same."""

    def boxed(character: str) -> str:
        name = "CR" if character == "\r" else f"U+{ord(character):04X}"
        return f'<span class="unseen">{name}</span>'

    return Markup(replace_unsafe(str(escape(text)), boxed))


def format_number(value: float) -> str:
    """Three decimals, or three digits where all decimals would be 0; with a true minus sign."""
    plain = f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
    return plain.replace("-", "−")
