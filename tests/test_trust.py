"""Nothing that comes with a model or with data is run: no code beside a checkpoint, no pickle, no loading script."""

from __future__ import annotations

import ast
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rept.errors import UsageError
from rept.model.loading import load_model, load_tokenizer
from tests.helpers.commands import ROOT

SOURCES = [path for room in ("rept", "extractors", "scorers", "datamodules") for path in (ROOT / room).rglob("*.py")]
UNPICKLERS = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


class Trap:
    """Whoever unpickles it makes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(material, tmp_path):
    """A copy of the model, and a path that must not come into being."""
    shutil.copytree(material.model, tmp_path / "model")
    return tmp_path / "model", tmp_path / "sprung"


def test_weights_that_hold_a_pickle_are_refused(folder):
    model, sprung = folder
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Trap(sprung)}, model / "pytorch_model.bin")
    with pytest.raises(UsageError) as caught:
        load_model(str(model))
    assert not sprung.exists() and str(model) in str(caught.value)


def test_an_adapter_that_holds_a_pickle_is_refused(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, sprung = folder
    adapter = tmp_path / "adapter"
    get_peft_model(load_model(str(model)), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"trap": Trap(sprung)}, adapter / "adapter_model.bin")
    with pytest.raises(UsageError) as caught:
        load_model(str(model), adapter=str(adapter))
    assert not sprung.exists() and str(adapter) in str(caught.value)


def test_code_beside_a_model_does_not_run_until_the_user_says_so(folder):
    model, sprung = folder
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nOwn = OwnConfig = None\n")
    config = json.loads((model / "config.json").read_text()) | {"model_type": "own_llama"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="code of its own, which runs only with model.trust_remote_code=true"):
        load_model(str(model))
    assert not sprung.exists()


def test_code_beside_a_tokenizer_does_not_run(folder):
    model, sprung = folder
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nOwn = None\n")
    path = model / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(told))
    with suppress(UsageError):
        load_tokenizer(str(model))
    assert not sprung.exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_ours_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not UNPICKLERS & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            assert [alias.name for alias in node.names] == ["UnpicklingError"]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load"), ("numpy", "load")}
