"""The documents name packages and files that exist, in the order and with the imports of the source."""

from __future__ import annotations

import re
from itertools import pairwise, product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rept.config.help import describe
from rept.config.words import CONFIGS
from tests.helpers.commands import ROOT
from tests.test_architecture import ORDER, PLUG_INS, parts

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
FOUNDATION = ("utils", "types", "errors")  # one node of the diagram
FOLDERS = "rept|extractors|scorers|datamodules|repairs|configs|tests|benchmarks|docs"


def test_the_readme_lists_the_packages_in_their_order():
    names = re.findall(r"^rept/(\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert names == list(ORDER[:-1])  # errors is named beside types


def test_the_architecture_document_lists_the_packages_in_their_order():
    assert re.findall(r"^\| `rept/(\w+)(?:\.py)?` \|", ARCHITECTURE, re.MULTILINE) == list(ORDER)


def test_the_diagram_shows_the_imports():
    """Whatever a package imports can be reached by the arrows from it, and nothing else can."""
    diagram = re.search(r"```mermaid\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
    arrows: dict[str, set[str]] = {}
    for line in re.sub(r"\[.*?\]", "", diagram).splitlines():
        nodes = [re.findall(r"\w+", part) for part in line.split(" --> ")]
        for sources, targets in pairwise(nodes):
            for source, target in product(sources, targets):
                arrows.setdefault(source, set()).add(target)
    packages = (*ORDER[ORDER.index("cli") + 1 : ORDER.index(FOUNDATION[0])], *PLUG_INS)
    imports = {one: {"utils" if other in FOUNDATION else other for other in parts()[one]} for one in packages}
    for one in packages:
        assert sorted(reachable(one, arrows)) == sorted(reachable(one, imports) | {"utils"}), one


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_the_documents_exist(path: Path):
    text = path.read_text()
    named = re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w/-]+(?:\.\w+)+)", text)
    named += re.findall(r"\]\(([\w/.-]+\.\w+)\)", text)  # links
    named = [name for name in named if "NAME" not in name]
    assert not [name for name in named if not (ROOT / name).exists() and not (path.parent / name).exists()]


def test_the_page_of_experiments_and_help_have_one_line_for_each_experiment():
    files = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    text = (ROOT / "docs" / "experiments.md").read_text()
    page = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text, re.MULTILINE))
    listed = dict(re.findall(r"^  experiment=([\w-]+) +(.*)$", describe("attribute", "usage"), re.MULTILINE))
    assert page == listed and sorted(page) == files and all(page.values())
    assert "(docs/experiments.md)" in (ROOT / "README.md").read_text()


def test_the_site_shows_every_page():
    shown = re.findall(r": ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [
        str(path.relative_to(ROOT / "docs")) for kind in ("md", "ipynb") for path in ROOT.glob(f"docs/**/*.{kind}")
    ]
    assert sorted(shown) == sorted(pages)


def test_the_citation_has_the_keys_that_its_format_requires():
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
