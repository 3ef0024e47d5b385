"""What a run is built from, and what is checked before it begins."""

from __future__ import annotations

import json
import shutil

import pytest

from rept.errors import UsageError
from rept.preparation import prepare
from rept.tokens import choose_layer


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("store.dtype=bfloat16", "store.dtype to be float16 or float32, but got 'bfloat16'"),
        ("store.shard_rows=0", "store.shard_rows to be at least 1, but got 0"),
        ("tokens.layer=99", "tokens.layer to be from 1 to 3, or -1, but got 99"),
        ("tokens.layer=0", "tokens.layer to be from 1 to 3, or -1, but got 0"),
    ],
)
def test_a_number_out_of_its_range_is_told_before_anything_is_computed(material, tmp_path, argument, told):
    with pytest.raises(UsageError, match=f"^Expected {told}.$"):
        prepare(material.config(tmp_path / "run", argument))


@pytest.mark.parametrize("arguments", [("tokens.layer=-1",), ("tokens.layer=3",), ("tokens.layer=99", "tokens.hits=0")])
def test_what_is_in_its_range_or_not_used_is_taken(material, tmp_path, arguments):
    assert prepare(material.config(tmp_path / "run", *arguments))


def test_the_last_layer_is_recorded_by_its_number():
    assert choose_layer(-1, [2], depth=3) == 3 and choose_layer(2, [3], depth=3) == 2


def with_own_tokenizer(model, folder):
    """A copy of a model whose tokenizer's class lies beside it."""
    shutil.copytree(model, folder)
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass Own(PreTrainedTokenizerFast): ...\n"
    )
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(told))
    return folder


def test_code_that_is_trusted_is_that_of_the_tokenizer_too(material, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = with_own_tokenizer(material.model, tmp_path / "model")
    config = material.config(tmp_path / "run", f"model.path={model}", "model.trust_remote_code=true")
    assert type(prepare(config).tokenizer).__name__ == "Own"
