"""report.html: one file without a network, made from a run folder alone.

What comes from data reaches the page in two ways only: escaped by the template, or packed (JSON, deflate, base64) and
set as text by the page's script. The page's policy lets no other script run and loads nothing.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rept.report import overview
from rept.report.findings import Findings
from rept.report.page_data import blocks
from rept.report.page_limits import LADDER
from rept.results.folding import fold
from rept.results.html_text import chips, clip, count, number
from rept.results.trace import Trace
from rept.utils.files import publish
from rept.utils.text import visible

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("core", "heat", "hits", "queries", "marks", "main")
MOST_BYTES = 5_000_000
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'"


def write_report(trace: Trace) -> Path:
    """Writes ``report.html`` into the run folder and returns its path."""
    publish(trace.folder.report, render(trace).encode())
    return trace.folder.report


def render(trace: Trace, most_bytes: int = MOST_BYTES) -> str:
    """The page, with as much of the run as ``most_bytes`` hold; what is left out is said on it."""
    frame = _frame(trace)
    folds = cache(lambda query: fold(trace.hits(query)[: LADDER[0].hits]))
    for limits in LADDER:
        content, left_out = blocks(trace, limits, folds)
        packed = {name: pack(value) for name, value in content.items()}
        page = frame(blocks=packed, left_out=left_out.told(limits), hits_shown=limits.hits)
        if len(page.encode()) <= most_bytes:
            break
    return page


def pack(value: Any) -> Markup:
    """JSON, deflated, in base64: letters, digits, + / = alone, so no text in it can end the element it stands in."""
    return Markup(b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode())).decode())


def _frame(trace: Trace) -> Any:
    """The template with all that does not depend on how much of the run the page holds."""
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"chips": chips, "clip": clip, "count": count, "number": number, "visible": visible}
    template = environment.get_template("page.html.jinja")
    css = (ASSETS / "style.css").read_text(encoding="utf-8")
    parts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    js = "\n".join(['"use strict";\n(() => {', *parts, "})();\n"])
    found = Findings(trace)
    given = {
        "css": Markup(css),
        "js": Markup(js),
        "policy": f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; {_NOTHING_ELSE}",
        "found": found,
        "name": trace.folder.path.resolve().name,
        "folder": str(trace.folder.path),
        "made": overview.made(trace),
        "lede": overview.lede(trace),
        "charts": overview.figures(trace),
        "measures": overview.measures_table(trace),
        "facts": overview.facts(trace),
        "retraining": overview.retraining(trace),
        "version": version("rept"),
    }
    return lambda **rest: template.render(given | rest)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
