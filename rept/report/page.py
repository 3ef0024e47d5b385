"""report.html: one file that needs no network, made from a run folder alone.

Data reaches the page in two ways only: escaped by the template, or packed (JSON, deflate, base64) and set as text by
the page's script. The page's policy allows no other script and loads nothing.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from markupsafe import Markup

from rept.report import overview, repair_table
from rept.report.charts import svg
from rept.report.findings import Findings
from rept.report.page_data import LADDER, PageBlocks
from rept.report.plot_data import plots
from rept.results.html_text import html_environment
from rept.results.trace import Trace
from rept.utils.files import publish
from rept.utils.json_files import read_json
from rept.utils.text import UNSAFE_IN_JAVASCRIPT

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("core", "heat", "hits", "queries", "marks", "main")
MOST_BYTES = 5_000_000
MOST_BEHAVIOURS = 12


def write_report(trace: Trace, path: Path | None = None) -> Path:
    """Writes the page to ``path``, by default ``report.html`` in the run folder, and returns the path."""
    path = path or trace.folder.report
    publish(path, render(trace).encode())
    return path


def render(trace: Trace, most_bytes: int = MOST_BYTES) -> str:
    """The page, with as much of the run as fits into ``most_bytes``; the page lists what is left out."""
    with_blocks = _template(trace)
    for limits in LADDER:
        made = PageBlocks(trace, limits)
        packed = {name: pack(block) for name, block in made.by_name.items()}
        page = with_blocks(blocks=packed, left_out=made.left_out.described(limits), hits_shown=limits.hits)
        if len(page.encode()) <= most_bytes:
            break
    return page


def pack(value: Any) -> Markup:
    """JSON, deflated, in base64: only letters, digits and + / =, so no text in it can end its element."""
    return Markup(b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode())).decode())


def _template(trace: Trace) -> Callable[..., str]:
    """Renders the page, given all that depends on how much of the run it has."""
    template = html_environment(FileSystemLoader(ASSETS), svg=svg).get_template("page.html.jinja")
    css = (ASSETS / "style.css").read_text(encoding="utf-8")
    scripts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    unsafe = f"const UNSAFE = /{UNSAFE_IN_JAVASCRIPT}/gu;\n"
    js = "\n".join(['"use strict";\n(() => {', unsafe, *scripts, "})();\n"])
    policy = f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'; form-action 'none'"
    ranked, repair = overview.behaviours_table(trace), trace.folder.repair / "repair.json"
    report = read_json(repair) if repair.is_file() else None
    given = {
        "css": Markup(css),
        "js": Markup(js),
        "policy": policy,
        "found": Findings(trace),
        "name": trace.folder.path.resolve().name,
        "folder": str(trace.folder.path),
        "date": overview.run_date(trace),
        "introduction": overview.introduction(trace),
        "problems": [*overview.label_problems(trace), *overview.token_notes(trace)],
        "behaviours": [(*row, trace.behaviour(row[0])[:10]) for row in ranked[:MOST_BEHAVIOURS]],
        "behaviours_left_out": max(0, len(ranked) - MOST_BEHAVIOURS),
        "plots": plots(trace),
        "measures": overview.measures_table(trace),
        "facts": overview.facts(trace),
        "rendered": trace.provenance["rendered"],
        "exclude": overview.exclude_command(trace),
        "prove": overview.prove_command(trace),
        "repair": report and {"limits": repair_table.limits(report), "tables": repair_table.repair_tables(report)},
        "version": version("rept"),
    }
    return lambda **rest: template.render(given | rest)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
