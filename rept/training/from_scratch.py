"""A new model: a tokenizer trained on the data, and a small Llama with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rept.errors import UsageError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with a chat template, BOS, EOS, PAD and a token for each role.

    Args:
        texts: from which the merges are learned.
        vocab_size: maximum number of entries, including the 256 bytes and the special tokens.
        max_length: of the model, in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    roles = [f"<|{role}|>" for role in ROLES]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        extra_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def tiny_llama(
    vocab_size: int,
    width: int = 64,
    layers: int = 4,
    heads: int = 4,
    max_length: int = 512,
    seed: int = 0,
    initializer_range: float = 0.02,
    **more: Any,
) -> LlamaForCausalLM:
    """Returns a Llama with random weights in float32, the same for the same seed.

    Args:
        vocab_size: entries of the embedding, which is also the output layer.
        width: of the residual stream.
        layers: number of blocks.
        heads: of each block's attention; must divide ``width``.
        max_length: longest text in tokens.
        seed: of the weights; the global generator does not change.
        initializer_range: standard deviation of the weights; narrow models learn faster with more than the usual 0.02.
        more: of Transformers' `LlamaConfig`, such as the tokenizer's ``eos_token_id``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class FromScratch:
    """Makes a small Llama and its tokenizer for given texts; each field is explained in configs/model/scratch.yaml.

    Raises UsageError if ``heads`` does not divide ``width``.
    """

    vocab_size: int = 1024
    width: int = 128
    layers: int = 4
    heads: int = 4
    max_length: int = 1024
    initializer_range: float = 0.06  # learns the embedded data in half the steps of the usual 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UsageError(f"Expected model.heads to divide model.width, but got {self.heads} and {self.width}.")

    def __call__(self, texts: Iterable[str]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        """Returns the model and the tokenizer."""
        tokenizer = train_tokenizer(texts, self.vocab_size, self.max_length)
        shape = self.width, self.layers, self.heads, self.max_length
        special = {f"{name}_id": tokenizer.vocab[token] for name, token in SPECIAL.items()}
        model = tiny_llama(len(tokenizer), *shape, self.seed, self.initializer_range, **special)
        return model, tokenizer
