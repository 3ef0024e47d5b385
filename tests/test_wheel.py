"""The wheel has all that the commands need, and works in another environment and another folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from rept.config.words import CONFIGS, OWN
from tests.conftest import Material
from tests.helpers.commands import ROOT, environment
from tests.test_architecture import PLUG_INS
from tests.test_readme import CLASSES

PACKAGES = ("rept", *PLUG_INS)
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "configs", *PACKAGES)
PLACES = "import rept, scorers; print(rept.__file__, scorers.__file__)"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this source, built by the setuptools of the running interpreter."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than the 77 that pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy, because setuptools builds in the source tree
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / "source" / name)
    command = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def rept(wheel: Path, tmp_path_factory) -> Path:
    """The console script in a new virtual environment, which has the wheel and may read the installed libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)
    own = sysconfig.get_path("purelib", vars={"base": str(folder)})
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # Last, or pip would find the project's own editable install there. That one stays unused: its .pth is not read.
    Path(own, "libraries.pth").write_text("\n".join(libraries))
    return folder / "bin" / "rept"


def finished(command: Sequence[str | Path], folder: Path, **more: str) -> str:
    known = {name: value for name, value in environment(**more).items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_wheel_has_all_packages_and_configurations_and_no_general_names(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    sources = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*")]
    code = {str(path.relative_to(ROOT)) for path in sources if path.is_file() and path.suffix != ".pyc"}
    words = {f"rept/configs/{path.relative_to(CONFIGS)}" for path in CONFIGS.rglob("*.yaml")}
    assert len(words) > 60 and {name for name in names if ".dist-info/" not in name} == code | words


def test_the_wheel_lists_every_subcommand_and_answers_help(rept: Path, tmp_path: Path) -> None:
    listed = finished([rept], tmp_path)
    for command in sorted((ROOT / "rept" / "commands").glob("[a-z]*.py")):
        assert command.stem in listed
    assert "experiment=rept " in finished([rept, "attribute", "--help"], tmp_path)
    assert "finetune.lora_rank" in finished([rept, "train", "--help"], tmp_path)


def test_the_wheel_traces_in_another_folder_with_a_class_and_a_word_of_the_users_own(
    rept: Path, material: Material, tmp_path: Path
) -> None:
    (tmp_path / "mylab.py").write_text("\n\n".join(CLASSES))
    (tmp_path / "mine" / "scorer").mkdir(parents=True)
    (tmp_path / "mine" / "scorer" / "far.yaml").write_text("_target_: mylab.Distance   # mine\n")
    arguments = material.arguments(Path("run"), "scorer=far", "report=true", "tokens.hits=0")
    said = finished([rept, "attribute", *arguments], tmp_path, **{OWN: "mine"})
    assert "41 rows read; 37 attributed" in said and (tmp_path / "run" / "report.html").is_file()
    finished([rept, "exclude", "run", "--first", "2"], tmp_path)
    assert len(json.loads((tmp_path / "culprits.json").read_text())["rows"]) >= 2
    for place in finished([rept.parent / "python", "-c", PLACES], tmp_path).split():
        assert Path(place).is_relative_to(rept.parents[1]), f"{place} is not from the wheel"
