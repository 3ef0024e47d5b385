"""A result in a notebook: its best hits with shaded tokens, as HTML with its styles inside each element.

Notebooks show it beside their own pages, light or dark, and some take style sheets away: so nothing here relies on one,
and shades are translucent over whatever is behind.
"""

from __future__ import annotations

from markupsafe import Markup

from rept.report.findings import Findings
from rept.report.shading import LEVELS, Piece, shaded
from rept.report.wording import chips, clip, number
from rept.results import Hit, Trace

POSITIVE, NEGATIVE = "236, 112, 20", "63, 134, 210"
QUERIES, HITS = 3, 3
_CELL = 'style="text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0"'
_FAINT = 'style="opacity: 0.7"'


def to_html(trace: Trace) -> str:
    """The first queries of each behaviour, each with its first hits."""
    found = Findings(trace)
    behaviours = found.behaviours[:QUERIES]
    first = [behaviour.example.query for behaviour in behaviours]
    others = [query["query"] for query in found.answered if query["query"] not in first]
    shown = sorted([*first, *others[: QUERIES - len(first)]])
    more = len(trace.queries) - len(shown)
    parts = [Markup("<p><b>{}</b></p>").format(found.headline), *(_query(trace, query) for query in shown)]
    if more:
        rest = f"{more:,} more in hits(query); python -m rept report {trace.folder.path} makes a page of all."
        parts.append(Markup("<p {}>{}</p>").format(Markup(_FAINT), rest))
    return str(Markup('<div style="max-width: 60em">{}</div>').format(Markup("").join(parts)))


def shaded_html(pieces: list[Piece]) -> Markup:
    """Text with a background for each piece's score; special tokens faint."""
    return Markup("").join(_piece(piece) for piece in pieces)


def _query(trace: Trace, query: int) -> Markup:
    asked = trace.queries[query]
    text = _exchange(asked["prompt"], asked["response"])
    head = Markup("<p><b>Query {}</b>{} {}</p>").format(query, _label(asked["label"]), text)
    rows = Markup("").join(_row(trace, hit) for hit in trace.hits(query)[:HITS])
    names = ("rank", "row", "score", "text")
    heads = Markup("").join(Markup("<th {}>{}</th>").format(Markup(_CELL), name) for name in names)
    return head + Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(heads, rows)


def _row(trace: Trace, hit: Hit) -> Markup:
    if hit.row in trace.scored(hit.query):
        text = shaded_html(shaded(trace.tokens(hit.query, hit.row)["train"]))
    else:
        text = _exchange(hit.prompt, hit.response)
    cells = (str(hit.rank), Markup("{}{}").format(hit.row, _label(hit.label)), number(hit.score))
    shown = Markup("").join(Markup("<td {}>{}</td>").format(Markup(_CELL), cell) for cell in cells)
    style = Markup('style="text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext"')
    return Markup("<tr>{}<td {}>{}</td></tr>").format(shown, style, text)


def _exchange(prompt: str, response: str) -> Markup:
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
