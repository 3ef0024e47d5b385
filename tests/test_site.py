"""The pages of the documentation site: their commands compose, and their Python code runs."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import rept
from rept.config.plug_ins import locate
from rept.correction.correction import Correction
from rept.correction.repair import identity
from rept.model.loading import load_model, load_tokenizer
from rept.run.pipeline import attribute
from rept.store.reader import AttributionStore
from rept.types import Key
from tests.conftest import Material
from tests.helpers.commands import ROOT
from tests.test_readme import check, commands

DOCS = ROOT / "docs"
GUIDES = [DOCS / "index.md", DOCS / "experiments.md", *sorted((DOCS / "how-to").glob("*.md"))]


def code(name: str) -> list[str]:
    """The Python blocks of a how-to page."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / "how-to" / name).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("command", [line for page in GUIDES for line in commands(page.read_text())])
def test_every_command_of_the_guides_exists_and_composes(command: str) -> None:
    check(command)


def test_all_code_of_the_guides_is_run_here() -> None:
    with_code = {page.name for page in GUIDES if "```python" in page.read_text()}
    assert with_code == {"own-trainer.md", "read-a-store.md", "repair.md"}  # all other code is included from README.md


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_includes_exists(page: Path) -> None:
    for file, section in re.findall(r'^--8<-- "(.*?):(\w+)"$', page.read_text(), re.MULTILINE):
        text = (ROOT / file).read_text()
        assert all(text.count(f"<!-- --8<-- [{end}:{section}] -->") == 1 for end in ("start", "end"))


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
def test_the_api_page_names_what_exists(name: str) -> None:
    assert locate(name).__doc__


def test_signatures_with_an_own_trainer_are_those_of_a_run(material: Material, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    train, queries = material.rows[24:41], material.asked[:3]
    scope = {"model": model, "tokenizer": tokenizer, "train": train, "queries": queries}
    for block in code("own-trainer.md"):
        exec(block, scope)
    traced = rept.trace(model, tokenizer, train, queries, layers="fixed", layers__layers=[2], top_k=5, out="run")
    best = scope["ranking"].best
    for query in range(len(queries)):
        hits = traced.hits(query)
        assert best.row[query].tolist() == [hit.row for hit in hits]
        assert best.score[query].tolist() == pytest.approx([hit.score for hit in hits], abs=1e-6)
    stored = AttributionStore("run/store", "train")
    for key, block in stored.read([0, 3], stored.keys).items():
        assert torch.equal(scope["vectors"][key], block)


def test_a_store_is_read_by_h5py_alone_as_the_page_says(material: Material, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    attribute(material.config(Path("runs/demo"), "tokens.hits=0", "store.shard_rows=9"), show_result=False)
    scope: dict[str, np.ndarray] = {}
    (block,) = code("read-a-store.md")
    exec(block, scope)
    store = AttributionStore("runs/demo/store", "train")
    expected = store.read([7], [Key("residual_stream", 2, "representation")])
    np.testing.assert_allclose(scope["vector"], next(iter(expected.values()))[0].numpy(), rtol=1e-6)
    text = (DOCS / "how-to" / "read-a-store.md").read_text()
    described = re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    with h5py.File("runs/demo/store/train/index.h5") as index:
        assert {name.replace("SITE", "residual_stream").partition("/")[0] for name in described} == set(index)
        assert np.array_equal(index["row"][:][index["position"][:]], np.arange(store.rows))
        aside = np.flatnonzero(index["status"][:] >= 2)
        assert len(aside) == 4 and not index["residual_stream/2/representation"][:][index["position"][:][aside]].any()


def test_a_repair_is_used_as_the_page_says(material: Material, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(material.model, "runs/demo/model")
    model, tokenizer = load_model("runs/demo/model"), load_tokenizer("runs/demo/model")
    shift = Correction.shift("b", 2, torch.ones(32))
    rept.Repair([shift], identity(model, tokenizer)).save("runs/demo/repair")
    (block,) = code("repair.md")
    exec(block, {})
    assert "blue lantern" in capsys.readouterr().out


def test_the_tour_runs_and_proves_what_it_shows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tour.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    scope: dict[str, object] = {}
    values = [run_cell("".join(cell["source"]), scope) for cell in cells]
    shown = [{kind: "".join(lines) for o in cell["outputs"] for kind, lines in o["data"].items()} for cell in cells]
    assert "rgba(" in shown[2]["text/html"] and "lantern" in shown[2]["text/html"]  # shaded tokens
    assert values[-2] == ast.literal_eval(shown[-2]["text/plain"])
    for answers in (values[-1], ast.literal_eval(shown[-1]["text/plain"])):  # the towns may differ by torch's version
        assert len(answers) == 4 and all(before == "Hail the tide!" != after for before, after in answers)
    assert not re.search(r"/(tmp|home|root|Users|usr|opt)/", text)


def run_cell(source: str, scope: dict[str, object]) -> Any:
    """The value of a cell's last expression, as a notebook shows it; None where it ends otherwise."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, type_ignores=[]), "cell", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), scope) if last else None
