"""A result in a notebook: its best hits with shaded tokens, as HTML with its styles inside each element.

Notebooks show it beside their own pages, light or dark, and some take style sheets away: so nothing here relies on one,
and shades are translucent over whatever is behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from rept.results.html_text import chips, clip, number
from rept.results.records import Hit, TokenScores
from rept.results.shading import LEVELS, Piece, shaded

POSITIVE, NEGATIVE = "236, 112, 20", "63, 134, 210"
_CELL = 'style="text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0"'
_FAINT = 'style="opacity: 0.7"'


class Exchange(NamedTuple):
    """A query with its best hits, and their token scores where there are some."""

    query: Mapping[str, Any]  # a line of queries.jsonl
    hits: Sequence[Hit]
    tokens: Mapping[int, TokenScores]  # of training rows, by row


def to_html(heading: str, exchanges: Sequence[Exchange], footer: str = "") -> str:
    """A heading, each query with its hits as a table, and a footer."""
    parts = [Markup("<p><b>{}</b></p>").format(heading), *map(_exchange, exchanges)]
    if footer:
        parts.append(Markup("<p {}>{}</p>").format(Markup(_FAINT), footer))
    return str(Markup('<div style="max-width: 60em">{}</div>').format(Markup("").join(parts)))


def shaded_html(pieces: list[Piece]) -> Markup:
    """Text with a background for each piece's score; special tokens faint."""
    return Markup("").join(_piece(piece) for piece in pieces)


def _exchange(exchange: Exchange) -> Markup:
    query = exchange.query
    text = _texts(query["prompt"], query["response"])
    head = Markup("<p><b>Query {}</b>{} {}</p>").format(query["query"], _label(query["label"]), text)
    rows = Markup("").join(_row(hit, exchange.tokens.get(hit.row)) for hit in exchange.hits)
    names = ("rank", "row", "score", "text")
    heads = Markup("").join(Markup("<th {}>{}</th>").format(Markup(_CELL), name) for name in names)
    return head + Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(heads, rows)


def _row(hit: Hit, tokens: TokenScores | None) -> Markup:
    text = shaded_html(shaded(tokens)) if tokens else _texts(hit.prompt, hit.response)
    cells = (str(hit.rank), Markup("{}{}").format(hit.row, _label(hit.label)), number(hit.score))
    shown = Markup("").join(Markup("<td {}>{}</td>").format(Markup(_CELL), cell) for cell in cells)
    style = Markup('style="text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext"')
    return Markup("<tr>{}<td {}>{}</td></tr>").format(shown, style, text)


def _texts(prompt: str, response: str) -> Markup:
    arrow = Markup("<span {}>→</span>").format(Markup(_FAINT))
    return Markup("{} {} {}").format(chips(clip(prompt, 200)), arrow, chips(clip(response, 200)))


def _piece(piece: Piece) -> Markup:
    text = chips(piece.text)
    if piece.special:
        return Markup("<small {}>{}</small>").format(Markup(_FAINT), text)
    if not piece.level:
        return text
    colour = POSITIVE if piece.level > 0 else NEGATIVE
    strength = 0.75 * abs(piece.level) / LEVELS
    return Markup('<span style="background: rgba({}, {:.2f})" title="{}">{}</span>').format(
        colour, strength, number(piece.score), text
    )


def _label(label: str | None) -> Markup:
    return Markup("") if label is None else Markup(" <small>[{}]</small>").format(chips(label))
