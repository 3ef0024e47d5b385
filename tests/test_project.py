"""What surrounds the code: metadata, workflows and hooks run the same checks, and name what exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import version

import yaml
from packaging.requirements import Requirement

from tests.helpers.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
CHECKS = ["ruff check .", "ruff format --check .", "mypy", "mkdocs build --strict"]


def steps(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_runs_all_checks_on_every_python_with_the_lowest_and_the_newest_torch() -> None:
    assert steps("lint-types-docs")[1:] == CHECKS and steps("tests")[-1] == "pytest"
    matrix = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.11", "3.12", "3.13"], "torch": ["lowest", "newest"]}
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"


def test_the_workflow_finds_the_lowest_torch() -> None:
    command = steps("tests")[0].partition(" | ")[0]
    found = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    torch = next(Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch")
    assert found == f"torch=={next(iter(torch.specifier)).version}.*"


def test_ci_and_hooks_run_the_same_checks() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for check in CHECKS:
        words = check.removesuffix(" .").replace(" --check", "")
        assert f'"{words}' in script
        assert words.startswith("mkdocs") or any(hook["entry"].startswith(words) for hook in hooks)


def test_extras_that_pages_and_workflows_install_exist() -> None:
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / ".github/workflows/checks.yml",
        ROOT / ".ci/run",
    ]
    groups = [found for page in pages for found in re.findall(r"'\.\[([\w,]+)\]'", page.read_text())]
    named = {name for group in groups for name in group.split(",")}
    assert {"test", "docs"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_metadata_name_what_exists() -> None:
    assert (ROOT / PROJECT["readme"]).is_file() and (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["scripts"] == {"rept": "rept.__main__:console"}
    assert version("rept") == PROJECT["version"]
