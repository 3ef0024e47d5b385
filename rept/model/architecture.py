"""Finds the decoder blocks, the final norm, and the attention and MLP of each block of a decoder-only model.

They are found by structure, so that any such model of Transformers will do; a short table lists the exceptions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from rept.errors import UsageError
from rept.types import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig

NAMES = ("blocks", "final_norm", "attention", "mlp")  # parameters of `Architecture.of`, and keys of a model's settings
_WORDS = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "feedforward", "ffn", "moe", "ff")}


# Blocks whose attention and MLP are not the submodules of these names, as (children, attention, MLP), all dotted names
# below the block. A block with all of the children is of that kind; the first match counts.
_EXCEPTIONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # Gemma 2 and 3, OLMo 2 and 3, EXAONE 4 norm each sublayer's output before it is added. The second name
    # distinguishes them from the Llama family, where post_attention_layernorm is the MLP's own input norm.
    (
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    (("post_self_attn_layernorm", "post_mlp_layernorm"), "post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    # In Bloom, attention and MLP receive the residual and add it themselves; these are their last layers before that.
    # Falcon has the same names; there these layers have the same outputs as the whole attention and MLP.
    (("self_attention.dense", "mlp.dense_4h_to_h"), "self_attention.dense", "mlp.dense_4h_to_h"),
    (("attn.Wqkv", "ffn.down_proj"), "attn", "ffn.down_proj"),  # MPT: the MLP adds the residual itself
    # OPT, BioGPT and XGLM have no MLP module; the second linear layer's output is added.
    (("self_attn", "fc1", "fc2"), "self_attn", "fc2"),
)


@dataclass(frozen=True)
class Architecture:
    """The modules of one model whose outputs can be read.

    Layers count from 1 to L, the number of blocks; -1 is L. Each of the three sites is a module whose output (element 0
    of a tuple) has one vector for each position.
    """

    blocks: tuple[nn.Module, ...]
    norm: nn.Module | None
    siblings: tuple[str, ...]  # names beside the blocks, for the message that no final norm was found among them
    named: Mapping[str, str | None]  # the parts that the user named, by the parameters of `of`

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        blocks: str | None = None,
        final_norm: str | None = None,
        attention: str | None = None,
        mlp: str | None = None,
    ) -> Architecture:
        """Returns the architecture of ``model``; it is cached, and later calls without names return the same.

        Args:
            model: a causal language model of Transformers, with or without a PEFT adapter.
            blocks: dotted name of the list of decoder blocks. None: the one list of ``num_hidden_layers`` modules.
            final_norm: dotted name of the norm after the last block. None: the norm beside the blocks.
            attention: dotted name, below a block, of the module whose output attention adds to the stream.
            mlp: the same for the MLP.

        Raises:
            UsageError: the blocks are not found by structure, or a name does not exist. A final norm, attention or MLP
                that is not found is reported when it is first used.
        """
        named = {"blocks": blocks, "final_norm": final_norm, "attention": attention, "mlp": mlp}
        if model in _KNOWN and not any(named.values()):
            return _KNOWN[model]
        wrapper = peft_wrapper(model)
        base: nn.Module = wrapper.get_base_model() if wrapper else model  # the wrapper adds two levels to each name
        path = blocks or _find_blocks(base, model.config)
        found = _submodule(base, path, "model.blocks")
        if not isinstance(found, nn.ModuleList):
            raise UsageError(f"model.blocks={path} names a {type(found).__name__}, not a list of decoder blocks.")
        holder = base.get_submodule(path.rpartition(".")[0])
        norm = _submodule(base, final_norm, "model.final_norm") if final_norm else _find_norm(holder, path)
        _KNOWN[model] = cls(tuple(found), norm, _children(holder), named)
        return _KNOWN[model]

    def __len__(self) -> int:
        return len(self.blocks)

    def layer(self, number: int) -> int:
        """Returns ``number``, with -1 resolved to the last layer; raises UsageError if there is no such layer."""
        if number == -1:
            return len(self)
        if not 1 <= number <= len(self):
            raise UsageError(f"Layer {number} does not exist: the layers of this model are 1 to {len(self)} (or -1).")
        return number

    def residual_stream(self, layer: int) -> nn.Module:
        """The block whose output is the stream after ``layer``; at the last layer the final norm, as in Transformers'
        ``hidden_states``."""
        layer = self.layer(layer)
        return self.blocks[layer - 1] if layer < len(self) else self.final_norm

    def attention_output(self, layer: int) -> nn.Module:
        """The module whose output attention adds to the stream; the block's post-norm if it has one."""
        return self._part(layer, "attention")

    def mlp_output(self, layer: int) -> nn.Module:
        """The module whose output the MLP or mixture of experts adds to the stream; its post-norm if it has one."""
        return self._part(layer, "mlp")

    @property
    def final_norm(self) -> nn.Module:
        if self.norm is None:
            raise UsageError(
                f"No final norm was found beside the blocks, only {_listed(self.siblings)}: name it with "
                "model.final_norm, or name the last block if the model has none."
            )
        return self.norm

    def _part(self, layer: int, part: str) -> nn.Module:
        block = self.blocks[self.layer(layer) - 1]
        if name := self.named[part]:
            return _submodule(block, name, f"model.{part}")
        for children, *parts in _EXCEPTIONS:
            if all(_has(block, child) for child in children):
                return block.get_submodule(parts[part == "mlp"])
        fits = [child for name, child in block.named_children() if _is_part(name, child, _WORDS[part])]
        if len(fits) != 1:
            raise UsageError(
                f"The {part} of layer {layer} was not found among its block's children {_listed(_children(block))}: "
                f"name it with model.{part}."
            )
        return fits[0]


_KNOWN: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()


def peft_wrapper(model: nn.Module) -> PeftModel | None:
    """Returns ``model`` if it is PEFT's wrapper of a model with an adapter, otherwise None."""
    if "peft" not in sys.modules:  # importing it takes a second, and no wrapper exists before it is imported
        return None
    from peft import PeftModel

    return model if isinstance(model, PeftModel) else None


def _find_blocks(model: nn.Module, config: PreTrainedConfig) -> str:
    """The dotted name of the one module list that is as long as the model is deep and in no other such list."""
    depth: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    long = [name for name, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child) == depth]
    lists: list[str] = [name for name in long if not any(name.startswith(f"{outer}.") for outer in long)]
    if len(lists) == 1:
        return lists[0]
    found = f"{len(lists)} lists of {depth} modules ({_listed(lists)})" if lists else f"no list of {depth} modules"
    parts = [f"{name}.{child}" for name, module in model.named_children() for child in _children(module)]
    raise UsageError(
        f"The decoder blocks were not found: the model has {found}; its parts are {_listed(parts)}: "
        "name the list with model.blocks."
    )


def _find_norm(holder: nn.Module, blocks: str) -> nn.Module | None:
    """The first norm after the blocks; else the only one before them (OPT), except the embedding's own."""
    names = _children(holder)
    position = names.index(blocks.rpartition(".")[2])
    norms = [name for name in names if _is_norm(name, holder.get_submodule(name))]
    after = [name for name in norms if names.index(name) > position]
    before = [name for name in norms if "embed" not in name]
    if after:
        return holder.get_submodule(after[0])
    return holder.get_submodule(before[0]) if len(before) == 1 else None


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or "norm" in name


def _is_part(name: str, module: nn.Module, words: Sequence[str]) -> bool:
    if _is_norm(name, module) or isinstance(module, nn.Dropout):
        return False
    return any(word in name.lower() for word in words)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _submodule(module: nn.Module, path: str, setting: str) -> nn.Module:
    if not _has(module, path):
        names = _listed(_children(module))
        raise UsageError(f"There is no module {setting}={path} in {type(module).__name__}; its children are {names}.")
    return module.get_submodule(path)


def _children(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_children())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
