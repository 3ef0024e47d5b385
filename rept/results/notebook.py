"""A result in a notebook: example queries with their best hits and shaded tokens, as HTML.

Notebooks may show it on light or dark pages and may remove style sheets: all styles are inline, and shades are
translucent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rept.results.html_text import format_number, visible_html
from rept.results.records import Hit, TokenScores
from rept.results.shading import LEVELS, Piece, shaded
from rept.utils.text import clip

POSITIVE, NEGATIVE = "236, 112, 20", "63, 134, 210"
_CELL = Markup('style="text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0"')
_TEXT = Markup('style="text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext"')
_FAINT = Markup('style="opacity: 0.7"')


# A query as in queries.jsonl, its best hits, and the token scores that there are, by training row.
QueryWithHits = tuple[Mapping[str, Any], Sequence[Hit], Mapping[int, TokenScores]]


def to_html(heading: str, queries: Iterable[QueryWithHits], footer: str = "") -> str:
    """A heading, each query with its hits as a table, and a footer."""
    parts = [Markup("<p><b>{}</b></p>").format(heading), *map(_section, queries)]
    if footer:
        parts.append(Markup("<p {}>{}</p>").format(_FAINT, footer))
    return str(Markup('<div style="max-width: 60em">{}</div>').format(Markup("").join(parts)))


def _section(shown: QueryWithHits) -> Markup:
    query, hits, tokens = shown
    text = _prompt_and_response(query["prompt"], query["response"])
    head = Markup("<p><b>Query {}</b>{} {}</p>").format(query["query"], _label(query["label"]), text)
    rows = Markup("").join(_row(hit, tokens.get(hit.row)) for hit in hits)
    names = Markup("").join(Markup("<th {}>{}</th>").format(_CELL, name) for name in ("rank", "row", "score", "text"))
    return head + Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(names, rows)


def _row(hit: Hit, tokens: TokenScores | None) -> Markup:
    text = Markup("").join(map(_piece, shaded(tokens))) if tokens else _prompt_and_response(hit.prompt, hit.response)
    cells = (str(hit.rank), Markup("{}{}").format(hit.row, _label(hit.label)), format_number(hit.score))
    shown = Markup("").join(Markup("<td {}>{}</td>").format(_CELL, cell) for cell in cells)
    return Markup("<tr>{}<td {}>{}</td></tr>").format(shown, _TEXT, text)


def _prompt_and_response(prompt: str, response: str) -> Markup:
    arrow = Markup("<span {}>→</span>").format(_FAINT)
    return Markup("{} {} {}").format(visible_html(clip(prompt, 200)), arrow, visible_html(clip(response, 200)))


def _piece(piece: Piece) -> Markup:
    """A piece with a background for its score; special tokens are faint."""
    text = visible_html(piece.text)
    if piece.special:
        return Markup("<small {}>{}</small>").format(_FAINT, text)
    if not piece.level:
        return text
    colour = POSITIVE if piece.level > 0 else NEGATIVE
    strength = 0.75 * abs(piece.level) / LEVELS
    return Markup('<span style="background: rgba({}, {:.2f})" title="{}">{}</span>').format(
        colour, strength, format_number(piece.score), text
    )


def _label(label: str | None) -> Markup:
    return Markup("") if label is None else Markup(" <small>[{}]</small>").format(visible_html(label))
