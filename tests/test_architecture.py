"""The structure that docs/architecture.md shows, read from the syntax trees of all files."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

# A package may import those below it in this list, and no others.
ORDER = (
    "commands",
    "cli",
    "evaluation",
    "run",
    "training",
    "report",
    "calibration",
    "results",
    "ranking",
    "store",
    "correction",
    "signatures",
    "model",
    "data",
    "distributed",
    "config",
    "utils",
    "types",
    "errors",
)
PLUG_INS = ("extractors", "scorers", "datamodules", "repairs")
PLUG_INS_MAY_IMPORT = ORDER[ORDER.index("ranking") :]
SCRIPTS = ("attribute.py", "train.py")
MOST_LEVELS = 9

FILES = sorted(path for folder in ("rept", *PLUG_INS) for path in (ROOT / folder).rglob("*.py"))
CONDUCTORS = [*(ROOT / name for name in SCRIPTS), *sorted((ROOT / "rept" / "commands").glob("[a-z]*.py"))]


def module_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, modules: frozenset[str]) -> Iterator[str]:
    """The project's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if found := next((name for name in (whole, str(node.module)) if name in modules), None):
                    yield found


@cache
def graph() -> Mapping[str, set[str]]:
    """Each module with those that it imports."""
    files = [*FILES, *(ROOT / name for name in SCRIPTS)]
    modules = frozenset(map(module_of, files))
    return {module_of(path): set(imported(path, modules)) - {module_of(path)} for path in files}


def part_of(module: str) -> str:
    """The package or top-level module that a module belongs to: the second name in ``rept``, the first elsewhere."""
    names = module.split(".")
    return names[1] if names[0] == "rept" and len(names) > 1 else names[0]


def parts() -> dict[str, set[str]]:
    """Each package or top-level module with those that it imports."""
    found: dict[str, set[str]] = {}
    for module, targets in graph().items():
        found.setdefault(part_of(module), set()).update(map(part_of, targets))
    return {part: targets - {part} for part, targets in found.items()}


def test_every_package_of_rept_is_in_the_order():
    named = {part_of(module) for module in graph() if module.startswith("rept.")}
    assert named == {*ORDER, "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_order(path):
    module = module_of(path)
    own = part_of(module)
    if own in ORDER:
        allowed = {own, *ORDER[ORDER.index(own) :]}
    elif own in PLUG_INS:
        allowed = {own, *PLUG_INS_MAY_IMPORT}
    else:  # rept itself, which names the public functions, and python -m rept
        allowed = set(ORDER)
    wrong = {target for target in graph()[module] if part_of(target) not in allowed}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


def test_no_files_import_one_another_in_a_cycle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_the_packages_have_few_levels():
    levels: dict[str, int] = {}
    imports = parts()
    for part in TopologicalSorter(imports).static_order():
        levels[part] = 1 + max((levels[other] for other in imports[part]), default=0)
    assert max(levels.values()) <= MOST_LEVELS, levels


def test_the_checks_see_imports_inside_functions(tmp_path):
    (tmp_path / "climber.py").write_text("def f():\n    from scorers.cosine import Cosine\n")
    assert set(imported(tmp_path / "climber.py", frozenset({"scorers.cosine"}))) == {"scorers.cosine"}


def test_a_name_means_one_thing():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = Counter(
        node.name
        for path in FILES
        if path.is_relative_to(ROOT / "rept") and not path.is_relative_to(ROOT / "rept" / "commands")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, kinds) and not node.name.startswith("_")
        if not any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", CONDUCTORS, ids=lambda path: path.name)
def test_command_lines_are_short(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings_are_true(path):
    if ">>>" not in path.read_text():
        return
    assert doctest.testmod(importlib.import_module(module_of(path))).failed == 0
