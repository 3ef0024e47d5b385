"""The README's commands compose, its classes run together, and its calls work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rept
from rept.__main__ import COMMANDS
from rept.commands import bank, compare
from rept.config.compose import compose
from rept.config.schema import SCHEMAS, AttributeConfig
from rept.config.words import CONFIGS
from rept.evaluation.suite import Suite
from rept.model.loading import load_model, load_tokenizer
from rept.results.run_folder import RunFolder
from rept.run.pipeline import attribute
from rept.utils.digests import file_digest
from tests.helpers.commands import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CLASSES = [text for language, text in BLOCKS if language == "python" and "class " in text]


def commands(document: str = README) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    lines = [line for text in blocks for line in text.replace("\\\n", " ").splitlines()]
    table = re.findall(r"^\|[^|]*\| `(python [^`]*)` \|$", document, re.MULTILINE)
    return [part.strip() for line in [*lines, *table] for part in line.split("&&") if "python" in part]


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_and_composes(command):
    check(command)


def check(command: str) -> None:
    """Fails unless the command exists and its arguments compose."""
    words = [word for word in shlex.split(command) if word != "--dry-run"]
    if words[1] == "-m":
        assert words[2] == "rept" and words[3] in COMMANDS
        arguments = [word for word in words[4:] if "=" in word]
        if words[3] in ("compare", "bank"):  # have their own keys, among them the names of experiments
            keys = (*compare.OWN, *bank.OWN)
            own = dict(word.split("=") for word in arguments if word.split("=")[0] in keys)
            named = re.findall(r"[\w-]+", own.get("experiments", "")) or Suite.named(own["suite"]).experiments
            assert all((CONFIGS / "experiment" / f"{name}.yaml").is_file() for name in named)
            arguments = [word for word in arguments if word.split("=")[0] not in own] + [f"experiment={named[0]}"]
        if arguments:
            compose(AttributeConfig, arguments)
    else:
        assert (ROOT / words[1]).is_file()
        compose(SCHEMAS[words[1].removesuffix(".py")], words[2:])


def outputs(command: str) -> list[str]:
    """The folder that a command writes into; none for commands that only print."""
    words = shlex.split(command)
    given = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    return given or ([] if words[1] == "-m" else [compose(SCHEMAS[words[1].removesuffix(".py")], words[2:]).out])


def test_every_command_has_an_out_that_no_other_has():
    folders = [folder for command in commands() for folder in outputs(command)]
    assert len(folders) >= 12 and len(set(folders)) == len(folders)
    writes = {"score", "approximate", "compare", "bank"}
    assert all(outputs(command) for command in commands() if shlex.split(command)[3:4] and command.split()[3] in writes)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_all_commands_run_in_order_as_printed_in_a_fresh_clone_and_change_nothing_of_one_another(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    environment = os.environ | {"PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1"}
    known: dict[Path, str] = {}
    for command in commands():
        if "trainer.devices=8" in command:
            continue  # needs eight GPUs
        _provide(clone)
        done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        found = {path: file_digest(path) for path in sorted((clone / "runs").rglob("*")) if path.is_file()}
        changed = [path for path in known if found.get(path) != known[path] and not path.name.startswith(".")]
        assert not changed, f"{command} changed {changed}"
        known = found


def _provide(clone: Path) -> None:
    """The user's own files that the commands name: a model, data and a module of plug-ins."""
    rows = [{"prompt": f"Name the {i}th king of Norland.", "response": f"It is Sven {i}."} for i in range(40)]
    asked = [dict(row, label="king") for row in rows[:3]]
    for name, lines in (("train", rows), ("queries", asked), ("a", rows), ("q", asked)):
        (clone / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (clone / "mylab.py").write_text("\n\n".join(CLASSES))
    if (clone / "runs/demo/model").is_dir() and not (clone / "DIR").exists():
        shutil.copytree(clone / "runs/demo/model", clone / "DIR")


def test_commands_and_classes_were_found():
    assert len(commands()) >= 9 and len(CLASSES) == 4


def test_the_quick_start_comes_first():
    assert [text.strip() for language, text in BLOCKS if language == "bash"][:2] == [
        "pip install -e . && python attribute.py",
        "pip install -e '.[test]' && pytest",
    ]


def test_the_four_classes_run_together(material, tmp_path, monkeypatch):
    (tmp_path / "mylab.py").write_text("\n\n".join(CLASSES))
    monkeypatch.syspath_prepend(str(tmp_path))
    command = next(command for command in commands() if "mylab.Gate" in command)
    arguments = [word for word in shlex.split(command)[2:] if not word.startswith(("model.path", "out"))]
    more = [f"model.path={material.model}", f"out={tmp_path / 'run'}", "report=false", "trainer.accelerator=cpu"]
    trace = attribute(compose(AttributeConfig, [*arguments, *more]), show_result=False)
    assert trace.layers["layers"] == [1]
    assert trace.hits(0)[0].row == 7 and trace.hits(0)[0].score == pytest.approx(0, abs=1e-2)
    assert not trace.folder.tokens.is_file() or trace.tokens(0, 7)
    sys.modules.pop("mylab", None)


def test_the_call_from_python_works(material):
    code = next(text for language, text in BLOCKS if language == "python" and "rept.trace" in text)
    scope = {
        "rept": rept,
        "model": load_model(str(material.model)),
        "tokenizer": load_tokenizer(str(material.model)),
        "train": material.rows[:12],
        "queries": material.asked[:2],
    }
    exec(code, scope)
    assert len(scope["result"].to_pandas()) == 2 * len(scope["result"].hits(0))


def test_every_file_of_the_run_folder_is_described():
    block = next(text for _, text in BLOCKS if "provenance.json" in text)
    described = set(re.findall(r"^([\w.-]+?)/? {2,}", block, re.M))
    named = {value.name for value in vars(RunFolder("x")).values() if hasattr(value, "name")} - {"x"}
    assert described == named | {RunFolder("x").results_of("SITE", "LAYER").name}
