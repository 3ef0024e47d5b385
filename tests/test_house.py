"""The floors: imports point down only, and no package of plug-ins knows another."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT

PLUG_INS = ("extractors", "scorers", "datamodules")
ROOMS = sorted(path for room in ("rept", *PLUG_INS) for path in (ROOT / room).rglob("*.py"))
CONDUCTORS = [ROOT / "attribute.py", ROOT / "train.py", *sorted((ROOT / "rept" / "commands").glob("[a-z]*.py"))]


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    floor = path.relative_to(ROOT).parts[0]
    above = {"attribute", "train", "tests", "benchmarks", *PLUG_INS} - {floor}
    climbs = above & set(imported(path))
    assert not climbs, f"{path.relative_to(ROOT)} imports {', '.join(sorted(climbs))}"


def test_the_check_sees_an_import_that_climbs(tmp_path):
    (tmp_path / "climber.py").write_text("def f():\n    from scorers.cosine import Cosine\n")
    assert "scorers" in set(imported(tmp_path / "climber.py"))


@pytest.mark.parametrize("path", CONDUCTORS, ids=lambda path: path.name)
def test_conductors_are_short(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings_are_true(path):
    if ">>>" not in path.read_text():
        return
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
