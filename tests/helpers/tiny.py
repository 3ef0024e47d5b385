"""Tiny random models of many architectures, made from config objects, and batches for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rept.model.freezing import freeze
from rept.model.optimizer_state import save_optimizer_state
from rept.types import IGNORE, Batch

VOCAB = 97
WIDTH = 32
LAYERS = 3

_LLAMA_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.2,  # large enough that attention and MLP matter beside the embeddings
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
_NO_HEAD_DIM = {name: value for name, value in _LLAMA_LIKE.items() if name != "head_dim"}
_GPT_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=None,
)
_FALCON = dict(_GPT_LIKE, alibi=False)

ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _LLAMA_LIKE),
    "mistral": ("mistral", dict(_LLAMA_LIKE, sliding_window=4)),
    "qwen2": ("qwen2", _NO_HEAD_DIM),
    "qwen3": ("qwen3", _LLAMA_LIKE),
    "gemma": ("gemma", _LLAMA_LIKE),
    "gemma2": ("gemma2", dict(_LLAMA_LIKE, sliding_window=4, query_pre_attn_scalar=8, final_logit_softcapping=5.0)),
    "gemma3": ("gemma3_text", dict(_LLAMA_LIKE, sliding_window=4, query_pre_attn_scalar=8)),
    "olmo2": ("olmo2", _NO_HEAD_DIM),
    "gpt2": ("gpt2", _GPT_LIKE),
    "gpt_neox": ("gpt_neox", dict(_GPT_LIKE, intermediate_size=48)),
    "phi3": ("phi3", _NO_HEAD_DIM),
    "bloom": ("bloom", _GPT_LIKE),
    "falcon": ("falcon", _FALCON),
    "falcon_sequential": ("falcon", dict(_FALCON, parallel_attn=False)),
    "falcon_two_norms": ("falcon", dict(_FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "mixtral": ("mixtral", dict(_LLAMA_LIKE, num_local_experts=LAYERS, num_experts_per_tok=2)),
    "opt": ("opt", dict(_GPT_LIKE, ffn_dim=48, word_embed_proj_dim=WIDTH, max_position_embeddings=64, init_std=0.2)),
    "gptj": ("gptj", dict(_GPT_LIKE, rotary_dim=4)),
    "cohere": ("cohere", _NO_HEAD_DIM),
}


def tiny_model(
    architecture: str = "llama", *, lora: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Module:
    """A frozen model in evaluation mode; with ``lora``, under an adapter whose weights are random, not zero."""
    kind, options = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    if lora:
        model = _with_lora(model)
    return freeze(model.to(dtype))


def _with_lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that GPT-2 stores its layers transposed, and goes on
        model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.2
    return model


def tiny_batch(
    lengths: Sequence[tuple[int, int]] = ((3, 4), (7, 2), (1, 1), (5, 9)), *, pad: int = 0, seed: int = 0
) -> Batch:
    """Random tokens: samples of (prompt, response) tokens, with ``pad`` further columns of padding."""
    generator = torch.Generator().manual_seed(seed)
    width = max(prompt + response for prompt, response in lengths) + pad
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE)
    for i, (prompt, response) in enumerate(lengths):
        tokens = torch.randint(1, VOCAB, (prompt + response,), generator=generator)
        input_ids[i, : len(tokens)] = tokens
        labels[i, prompt : len(tokens)] = tokens[prompt:]
    prompts, responses = torch.tensor(lengths).T
    return Batch(
        input_ids=input_ids,
        labels=labels,
        prompt_end=prompts - 1,
        length=prompts + responses,
        row=torch.arange(len(lengths)),
        cut=torch.zeros(len(lengths), dtype=torch.bool),
        side="train",
        text=tuple(("", "") for _ in lengths),
    )


def trained_by_adam(folder: Path, wanted: str = "", **settings: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after three steps of Adam on the weights whose names contain ``wanted``, and the optimizer.

    The optimizer's state is written into the folder.
    """
    model, batch = tiny_model(), tiny_batch(seed=5)
    weights = [p.requires_grad_() for name, p in model.named_parameters() if wanted in name]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.8, 0.9), **settings)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        optimizer.step()
    save_optimizer_state(folder, optimizer, model)
    return model.requires_grad_(False), optimizer
