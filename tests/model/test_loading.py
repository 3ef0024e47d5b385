"""Loading models, adapters and tokenizers, and the errors when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from rept.errors import UsageError
from rept.model import loading
from rept.model.loading import load_model, load_tokenizer
from rept.run.pipeline import attribute
from rept.training.from_scratch import tiny_llama
from tests.helpers.tiny import tiny_batch, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model with its tokenizer."""
    tiny_llama(50, width=16, layers=2, heads=2).save_pretrained(tmp_path / "model")
    tokenizer("base").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokenizer(word: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({word: 0})))


@pytest.fixture
def adapter(folder: Path) -> Path:
    """A LoRA adapter for it, saved beside it, with a tokenizer of its own."""
    base = load_model(str(folder))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder.parent / "adapter")
    tokenizer("adapted").save_pretrained(folder.parent / "adapter")
    return folder.parent / "adapter"


def test_a_loaded_model_is_frozen_in_evaluation_mode(folder: Path, capfd: pytest.CaptureFixture) -> None:
    model = load_model(str(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_weights_take_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    assert load_model(str(folder), dtype=dtype).dtype == getattr(torch, dtype)


def test_a_run_in_float64_gives_the_scores_of_float32(material, tmp_path: Path) -> None:
    exact, single = (
        attribute(material.config(tmp_path / dtype, f"model.dtype={dtype}", "store.dtype=float32"), show_result=False)
        for dtype in ("float64", "float32")
    )
    for query in range(len(material.asked)):
        found, expected = exact.hits(query), single.hits(query)
        assert [hit.row for hit in found] == [hit.row for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_experts_are_computed_in_float64(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    model, batch = load_model(str(tmp_path), dtype="float64"), tiny_batch()
    assert model.dtype == torch.float64
    torch.testing.assert_close(model(batch.input_ids).logits.float(), tiny_model("mixtral")(batch.input_ids).logits)


def test_attention_implementation_is_passed_on(folder: Path) -> None:
    assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == "eager"


def test_an_adapter_is_applied_to_the_model(folder: Path, adapter: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    plain, adapted = load_model(str(folder)), load_model(str(folder), adapter=str(adapter))
    assert isinstance(adapted, PeftModel) and not any(p.requires_grad for p in adapted.parameters())
    assert not torch.allclose(plain(ids).logits, adapted(ids).logits)
    alone = load_model(str(adapter))  # names its base model
    assert isinstance(alone, PeftModel) and torch.equal(alone(ids).logits, adapted(ids).logits)


def test_an_adapters_own_tokenizer_precedes_the_models(folder: Path, adapter: Path) -> None:
    assert load_tokenizer(str(folder)).get_vocab() == {"base": 0}
    assert load_tokenizer(str(folder), adapter=str(adapter)).get_vocab() == {"adapted": 0}
    assert load_tokenizer(str(adapter)).get_vocab() == {"adapted": 0}


def test_an_adapter_that_shifts_positions_is_refused(folder: Path) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(load_model(str(folder)), config).save_pretrained(folder.parent / "prefix")
    with pytest.raises(UsageError, match="virtual tokens"):
        load_model(str(folder), adapter=str(folder.parent / "prefix"))


def test_an_adapter_of_another_model_is_reported(folder: Path, adapter: Path) -> None:
    tiny_llama(50, width=32, layers=2, heads=2).save_pretrained(folder.parent / "wider")
    with pytest.raises(UsageError, match="adapter contains no PEFT adapter for this model.*size mismatch") as raised:
        load_model(str(folder.parent / "wider"), adapter=str(adapter))
    assert "\n" not in str(raised.value)


def test_missing_weights_are_reported_and_not_initialized(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_an_encoder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    BertForMaskedLM(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"causal language model, but it is an encoder \(BertForMaskedLM\)") as raised:
        load_model(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_model_without_a_tokenizer_is_reported_with_what_to_do(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match=r"a model but no tokenizer: .* tokenizer\.save_pretrained\(") as raised:
        load_tokenizer(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("dtype", "supported", "accelerator", "loaded"),
    [
        ("auto", False, False, torch.float32),
        ("auto", True, False, torch.bfloat16),
        ("auto", False, True, torch.bfloat16),
        ("bfloat16", False, False, torch.bfloat16),
    ],
)
def test_half_precision_becomes_float32_on_a_cpu_that_is_slow_in_it(
    folder: Path,
    dtype: str,
    supported: bool,
    accelerator: bool,
    loaded: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    load_model(str(folder), dtype="bfloat16").save_pretrained(folder)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    for _ in range(2):
        model = load_model(str(folder), dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {loaded} and model.dtype == loaded
    said = "loaded in float32: this CPU computes slowly in bfloat16. model.dtype=bfloat16 keeps"
    assert " ".join(capsys.readouterr().out.split()).count(said) == (loaded == torch.float32)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_folder_without_a_model_is_reported_in_one_sentence(load, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} contains no .*loaded") as raised:
        load(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("path", ["/no/such/model", "no-such/model"])
def test_a_path_that_is_no_folder_is_reported(load, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=f"There is no folder {path}, and .* hub"):
        load(path)


def test_a_missing_path_or_adapter_is_reported(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.path is not set"):
        load_model(None)
    with pytest.raises(UsageError, match="no folder /no/such/adapter"):
        load_model(str(folder), adapter="/no/such/adapter")
    with pytest.raises(UsageError, match="contains no PEFT adapter"):
        load_model(str(folder), adapter=str(folder))


def test_an_unknown_dtype_names_the_choices(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.dtype must be one of auto, .* not 'half'"):
        load_model(str(folder), dtype="half")


def test_quantization_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="exclude one another"):
        load_model(str(folder), load_in_4bit=True, load_in_8bit=True)
    monkeypatch.setattr("rept.model.loading.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"load_in_4bit needs bitsandbytes: pip install bitsandbytes "):
        load_model(str(folder), load_in_4bit=True)
    monkeypatch.setattr("rept.model.loading.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"load_in_8bit needs a GPU.*'quantized'"):
        load_model(str(folder), load_in_8bit=True)


@pytest.mark.parametrize(("dtype", "compute"), [("auto", torch.bfloat16), ("float16", torch.float16)])
def test_quantized_weights_are_computed_with_in_the_dtype(dtype: str, compute: torch.dtype, monkeypatch) -> None:
    given = []
    monkeypatch.setattr("rept.model.loading.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **settings: given.append(settings))
    loading._quantization(True, False, dtype)
    assert given == [{"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_compute_dtype": compute}]


def test_the_hub_is_not_asked_for_a_model_in_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda path, name: "cached")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    loading._check_hub("some/model")
