"""A result in a notebook: example queries with their best hits and shaded tokens, as HTML.

Notebooks may show it on light or dark pages and may remove style sheets: all styles are inline, and shades are
translucent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rept.results.html_text import html_environment
from rept.results.records import Hit, TokenScores
from rept.results.shading import LEVELS, shaded

# A query as in queries.jsonl, its best hits, and the token scores that there are, by training row.
QueryWithHits = tuple[Mapping[str, Any], Sequence[Hit], Mapping[int, TokenScores]]

# White space in the last cell of a row is shown.
_TEMPLATE = """\
{% set cell = "text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0" %}
{% set text = "text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext" %}
{% macro label(name) %}{% if name is not none %} <small>[{{ name | visible_html }}]</small>{% endif %}{% endmacro %}
{% macro sample(prompt, response) -%}
{{ prompt | clip(200) | visible_html }} <span style="opacity: 0.7">→</span> {{ response | clip(200) | visible_html }}
{%- endmacro %}
{% macro token(piece) -%}
{% if piece.special %}<small style="opacity: 0.7">{{ piece.text | visible_html }}</small>
{%- elif not piece.level %}{{ piece.text | visible_html }}
{%- else %}<span style="background: rgba({{ "236, 112, 20" if piece.level > 0 else "63, 134, 210" }}, {{
"%.2f" % (0.75 * piece.level | abs / levels) }})" title="{{ piece.score | format_number }}">{{
piece.text | visible_html }}</span>
{%- endif %}
{%- endmacro %}
<div style="max-width: 60em"><p><b>{{ heading }}</b></p>
{% for query, hits, tokens in queries %}
<p><b>Query {{ query.query }}</b>{{ label(query.label) }} {{ sample(query.prompt, query.response) }}</p>
<table><thead><tr>
{% for name in ("rank", "row", "score", "text") %}<th style="{{ cell }}">{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for hit in hits %}
<tr><td style="{{ cell }}">{{ hit.rank }}</td><td style="{{ cell }}">{{ hit.row }}{{ label(hit.label) }}</td>
<td style="{{ cell }}">{{ hit.score | format_number }}</td><td style="{{ text }}">
{%- if hit.row in tokens %}{% for piece in tokens[hit.row] | shaded %}{{ token(piece) }}{% endfor %}
{%- else %}{{ sample(hit.prompt, hit.response) }}{% endif -%}
</td></tr>
{% endfor %}
</tbody></table>
{% endfor %}
{% if footer %}<p style="opacity: 0.7">{{ footer }}</p>{% endif %}
</div>"""


def to_html(heading: str, queries: Iterable[QueryWithHits], footer: str = "") -> str:
    """A heading, each query with its hits as a table, and a footer."""
    environment = html_environment(shaded=shaded)
    template = environment.from_string(_TEMPLATE)
    return template.render(heading=heading, queries=queries, footer=footer, levels=LEVELS)
