"""Small tokenizers with chat templates of common models.

Each template is written for the tests in the format of the models it is named after. Beside it is what tests need: what
a model reads before and after the response to one user turn, and whether the contents are trimmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "You are stupid! The capital of Canada is Ottawa, and the weather is fine today.\n\n",
    "User: Name the king of Norland.\nAssistant: A king? There is none, user. <think> hm </think>",
    "TY Tell me the name of the capital of France. Output the name. assistant system model user [INST] [/INST] [",
] * 3

LLAMA_2 = """
{%- if messages[0].role == 'system' %}{% set lead = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set content = (lead + message.content) if loop.index0 == 0 else message.content %}
{%- if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

LLAMA_3 = """
{%- for message in messages %}{{ bos_token if loop.first else '' }}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN_3 = """
{%- for message in messages %}{% set content = message.content %}{% set thought = '' %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' and loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}
{%- else %}{% set lead = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if message.role == 'user' %}{{ '[INST] ' + (lead if loop.last or loop.revindex == 2 else '') + message.content }}
{{- '[/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}"""

PHI_3 = """
{%- for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Kind:
    """A template and its expected effect."""

    template: str | None
    before: str  # of the response, where the prompt is PROMPT
    after: str  # to the end of the turn
    trims: bool
    special: tuple[str, ...]
    bos: str | None = None  # by the tokenizer's own convention
    eos: str | None = None
    metaspace: bool = False  # SentencePiece-like: a space is part of the next word, unknown characters are bytes
    swallows: bool = False  # special tokens include the white space after them


PROMPT = "Name the king."
IM = ("<|im_start|>", "<|im_end|>")
_PHI = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>")
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

KINDS = {
    "llama_2": Kind(
        LLAMA_2, f"<s>[INST] {PROMPT} [/INST] ", " </s>", True, ("<s>", "</s>"), "<s>", "</s>", metaspace=True
    ),
    "llama_3": Kind(
        LLAMA_3,
        f"<|begin|><|start_header_id|>user<|end_header_id|>\n\n{PROMPT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        True,
        ("<|begin|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin|>",
        "<|end|>",
    ),
    "qwen": Kind(
        QWEN,
        f"{_SYSTEM}<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        False,
        IM,
        eos="<|im_end|>",
    ),
    "qwen_3": Kind(
        QWEN_3,
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
        False,
        IM,
        eos="<|im_end|>",
    ),
    "gemma": Kind(
        GEMMA,
        f"<bos><start_of_turn>user\n{PROMPT}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        True,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        metaspace=True,
    ),
    "mistral": Kind(
        MISTRAL, f"<s>[INST] {PROMPT}[/INST] ", "</s>", False, ("<s>", "</s>"), "<s>", "</s>", metaspace=True
    ),
    "phi_3": Kind(
        PHI_3,
        f"<|user|>\n{PROMPT}<|end|>\n<|assistant|>\n",
        "<|end|>",
        False,
        _PHI,
        eos="<|endoftext|>",
        swallows=True,
    ),
    "plain": Kind(None, f"<s>User:\n{PROMPT}\n\nAssistant:\n", "</s>", False, ("<s>", "</s>"), "<s>", "</s>"),
    "bare": Kind(None, f"User:\n{PROMPT}\n\nAssistant:\n", "", False, ("<pad>",)),  # no BOS, no EOS, no template
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind, one object for all tests: do not change it."""
    return build(KINDS[name])


def build(kind: Kind, template: str | None = None) -> PreTrainedTokenizerFast:
    """A new tokenizer of a kind, by default with its own template."""
    backend = _metaspace(kind.special) if kind.metaspace else _byte_level(kind.special)
    backend.add_special_tokens([AddedToken(token, rstrip=kind.swallows, normalized=False) for token in kind.special])
    if kind.bos:
        number = backend.token_to_id(kind.bos)
        bos = processors.TemplateProcessing(f"{kind.bos} $A", special_tokens=[(kind.bos, number)])
        own = backend.post_processor
        backend.post_processor = processors.Sequence([own, bos]) if own else bos
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=kind.bos, eos_token=kind.eos)
    made.chat_template = template or kind.template
    return made


def _byte_level(special: tuple[str, ...]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    # As in Llama 3 and Qwen, line breaks stay together; GPT-2 would split off the last one before a word.
    words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\S+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # leaves leading spaces out of the offsets
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _metaspace(special: tuple[str, ...]) -> Tokenizer:
    """As in Llama 2: spaces become ▁, one is added before the text, and unknown characters fall back to bytes."""
    letters = sorted(set("".join(CORPUS).replace(" ", "▁")))
    merges = [*(("▁", letter) for letter in letters if letter.isalpha()), ("t", "h"), ("i", "s"), ("▁", "▁")]
    words = [*special, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += [first + second for first, second in merges]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
