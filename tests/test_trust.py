"""No code from a model or from data runs: no code next to a checkpoint, no pickle, no loading script."""

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

FOLDERS = ("rept", "extractors", "scorers", "datamodules", "repairs")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
UNPICKLERS = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


class Trap:
    """Creates the file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(material, tmp_path):
    """A copy of the model, and the path of a file that must not be created."""
    shutil.copytree(material.model, tmp_path / "model")
    return tmp_path / "model", tmp_path / "sprung"


def test_weights_with_a_pickle_are_refused(folder):
    model, sprung = folder
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Trap(sprung)}, model / "pytorch_model.bin")
    with pytest.raises(UsageError) as caught:
        load_model(str(model))
    assert not sprung.exists() and str(model) in str(caught.value)


def test_an_adapter_with_a_pickle_is_refused(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, sprung = folder
    adapter = tmp_path / "adapter"
    get_peft_model(load_model(str(model)), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"trap": Trap(sprung)}, adapter / "adapter_model.bin")
    with pytest.raises(UsageError) as caught:
        load_model(str(model), adapter=str(adapter))
    assert not sprung.exists() and str(adapter) in str(caught.value)


def test_code_next_to_a_model_runs_only_if_the_user_allows_it(folder):
    model, sprung = folder
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nOwn = OwnConfig = None\n")
    config = json.loads((model / "config.json").read_text()) | {"model_type": "own_llama"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="its own code, which runs only with model.trust_remote_code=true"):
        load_model(str(model))
    assert not sprung.exists()


def test_code_next_to_a_tokenizer_does_not_run(folder):
    model, sprung = folder
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nOwn = None\n")
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(config))
    with suppress(UsageError):
        load_tokenizer(str(model))
    assert not sprung.exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_never_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not UNPICKLERS & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            assert [alias.name for alias in node.names] == ["UnpicklingError"]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load"), ("numpy", "load")}
