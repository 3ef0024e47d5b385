import subprocess
import sys

import pytest
import torch

from rept.data.encoder import Encoder
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.model.freezing import freeze
from rept.training.from_scratch import FromScratch, tiny_llama, train_tokenizer

TEXTS = ["Where is the river?", "The river of Norland is the Arle.", "Königin 猫 🙂"]


def test_model_and_tokenizer_fit():
    model, tokenizer = FromScratch(vocab_size=320, width=16, layers=2, heads=2, max_length=64)(TEXTS)
    assert model.config.vocab_size == len(tokenizer) <= 320
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 16
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name) is not None


def test_seed_decides_the_weights():
    one, same, other = (FromScratch(300, 16, 1, 2, seed=seed)(TEXTS)[0] for seed in (0, 0, 1))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_initializer_range_is_the_standard_deviation():
    model, _ = FromScratch(300, 64, 1, 2, initializer_range=0.06)(TEXTS)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.06, rel=0.05)


def test_any_text_survives_the_tokenizer():
    tokenizer = train_tokenizer(TEXTS, vocab_size=280, max_length=64)
    for text in (*TEXTS, "never seen: ß\t\n\x00 \U0001f9e1"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_template_gives_one_bos_and_ends_with_eos():
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, max_length=64)
    turns = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"})
    encoded = Encoder(tokenizer, 64)(Sample(messages=turns, response="The river."))
    assert encoded.text == "<|bos|><|system|>Be kind.<|user|>Where?<|assistant|>The river.<|eos|>"
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == "The river.<|eos|>"


def test_merges_do_not_depend_on_the_process():
    make = f"train_tokenizer({TEXTS * 3!r}, 320, 64).get_vocab()"
    code = f"from rept.training.from_scratch import train_tokenizer; print({make})"
    here = train_tokenizer(TEXTS * 3, 320, 64).get_vocab()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(there) == here


def test_heads_of_unequal_width_are_refused():
    with pytest.raises(UsageError, match="model.heads to divide model.width, but got 3 and 16"):
        FromScratch(width=16, heads=3)


def test_tiny_llama_is_the_same_for_the_same_seed_and_leaves_the_generator() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (freeze(tiny_llama(50, width=16, layers=2, heads=2, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.config.num_hidden_layers == 2 and one.config.hidden_size == 16
