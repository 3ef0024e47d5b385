"""What each command imports: libraries that take seconds must not slow down those that do not need them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rept.run.pipeline import attribute
from tests.conftest import Material
from tests.helpers import forks
from tests.helpers.commands import ROOT, environment

HEAVY = {
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "lightning", "torchmetrics", "transformers", "tokenizers"),
    *("peft", "datasets", "pyarrow", "pandas", "scipy", "sklearn", "sympy", "matplotlib", "faiss"),
}
SUBCOMMANDS = sorted(path.stem for path in (ROOT / "rept" / "commands").glob("[a-z]*.py"))


def imported(code: str) -> set[str]:
    """The heavy modules that a Python process has imported after ``code``, which must end well."""
    listing = "import sys\nprint('imported', *sys.modules, sep='\\n', file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return HEAVY & set(ended.stderr.rpartition("imported\n")[2].splitlines())


def imported_by(*command: str) -> set[str]:
    """As `imported`, of ``python -m rept`` with these arguments."""
    return imported(f"from rept.__main__ import dispatch\nassert dispatch({list(command)}) == 0")


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    attribute(material.config(folder), show_result=False)
    return folder


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_help_needs_no_library_that_takes_seconds(command: str) -> None:
    assert imported_by(command, "--help") == set()


@pytest.mark.parametrize(
    "command", ["rows {run}", "rows {run} --set-aside", "exclude {run} out={tmp}/rows.json", "report {run} out={tmp}"]
)
def test_commands_that_read_results_need_not_even_torch(command: str, run: Path, tmp_path: Path) -> None:
    assert imported_by(*command.format(run=run, tmp=tmp_path).split()) == set()


def test_score_needs_torch_alone(run: Path, tmp_path: Path) -> None:
    assert imported_by("score", str(run), "scorer=inner_product", f"out={tmp_path / 'again'}") == {"torch"}


def test_the_list_has_what_a_run_imports() -> None:
    """Otherwise the tests above would prove nothing."""
    assert {"torch", "lightning"} <= HEAVY & sys.modules.keys()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the run is a fork")
def test_a_run_imports_what_reads_tables_only_where_it_reads_one(material: Material, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
from rept.commands import attribute

attribute.run({material.arguments(tmp_path / "run")!r})
print(*({{"datasets", "pandas", "pyarrow"}} & sys.modules.keys()))
""")
    code, out, err = forks.finish(str(script))
    assert code == 0 and out.endswith("\n\n"), out + err
