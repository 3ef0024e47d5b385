"""Where a decoder-only model keeps its blocks, its final norm, and what a block's attention and MLP add to the stream.

Found by structure, so that any such model of Transformers will do; a short table holds what structure cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from rept.errors import UsageError

NAMES = ("blocks", "final_norm", "attention", "mlp")  # what `Architecture.of` can be told, and so can a model's config
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "feed_forward", "feedforward", "ffn", "moe", "ff")

# What the structure of a block cannot tell: which of its submodules' outputs are added to the stream.
# (children that mark the kind of block, attention, MLP), as dotted names below the block; the first match counts.
_EXCEPTIONS = (
    # Gemma 2 and 3, OLMo 2 and 3, EXAONE 4: each sublayer is normed once more before it is added. The second name tells
    # them from the Llama family, where post_attention_layernorm is the MLP's own input norm.
    (
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    (("post_self_attn_layernorm", "post_mlp_layernorm"), "post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    # Bloom: attention and MLP receive the residual and add it themselves; these are their last layers before that.
    # Falcon has the same names, and the same outputs there as of its whole attention and MLP.
    (("self_attention.dense", "mlp.dense_4h_to_h"), "self_attention.dense", "mlp.dense_4h_to_h"),
    (("attn.Wqkv", "ffn.down_proj"), "attn", "ffn.down_proj"),  # MPT: the MLP adds the residual itself
    # OPT, BioGPT, XGLM: no MLP module, the second linear layer's output is what is added.
    (("self_attn", "fc1", "fc2"), "self_attn", "fc2"),
)


@dataclass(frozen=True)
class Architecture:
    """The modules of one model whose outputs can be read.

    Layers count from 1 to L, the number of blocks; -1 is L. Each of the three sites is a module; its output (element 0
    where it is a tuple) holds one vector for each position.
    """

    blocks: tuple[nn.Module, ...]
    norm: nn.Module | None
    siblings: tuple[str, ...]  # what stands beside the blocks, for the message when no final norm is found there
    named: Mapping[str, str | None]  # what the user named, by the parameters of `of`; the rest is found by structure

    @classmethod
    def of(
        cls,
        model: nn.Module,
        blocks: str | None = None,
        final_norm: str | None = None,
        attention: str | None = None,
        mlp: str | None = None,
    ) -> Architecture:
        """The architecture of ``model``, remembered for it: later calls that name nothing return the same.

        Args:
            model: a causal language model of Transformers, with or without a PEFT adapter.
            blocks: dotted name of the list of decoder blocks. None: the one list of ``num_hidden_layers`` modules.
            final_norm: dotted name of the norm after the last block. None: the norm that stands beside the blocks.
            attention: dotted name, below a block, of the module whose output is what attention adds to the stream.
            mlp: the same for the MLP.

        Raises:
            UsageError: the blocks cannot be told by structure, or a name leads nowhere. What lies deeper (final norm,
                attention, MLP) is looked for when it is first asked for, so that it only stops those who need it.
        """
        named = {"blocks": blocks, "final_norm": final_norm, "attention": attention, "mlp": mlp}
        if model in _KNOWN and not any(named.values()):
            return _KNOWN[model]
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper adds two levels
        path = blocks or _find_blocks(base)
        found = _submodule(base, path, "model.blocks")
        if not isinstance(found, nn.ModuleList):
            raise UsageError(f"model.blocks={path} names a {type(found).__name__}, not a list of decoder blocks.")
        holder = base.get_submodule(path.rpartition(".")[0])
        norm = _submodule(base, final_norm, "model.final_norm") if final_norm else _find_norm(holder, path)
        siblings = tuple(name for name, _ in holder.named_children())
        _KNOWN[model] = cls(tuple(found), norm, siblings, named)
        return _KNOWN[model]

    def __len__(self) -> int:
        return len(self.blocks)

    def layer(self, number: int) -> int:
        """``number`` counted from 1, with -1 for the last layer.

        Raises:
            UsageError: there is no such layer.
        """
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
        """The module whose output attention adds to the stream, after the block's own post-norm where it has one."""
        return self._part(layer, 1, "attention", _ATTENTION)

    def mlp_output(self, layer: int) -> nn.Module:
        """The module whose output the MLP (or mixture of experts) adds to the stream, after its post-norm likewise."""
        return self._part(layer, 2, "mlp", _MLP)

    @property
    def final_norm(self) -> nn.Module:
        if self.norm is None:
            raise UsageError(
                f"No final norm was found beside the blocks, only {_listed(self.siblings)}: name it with "
                "model.final_norm, or name the last block where the model has none."
            )
        return self.norm

    def _part(self, layer: int, column: int, setting: str, words: Sequence[str]) -> nn.Module:
        block = self.blocks[self.layer(layer) - 1]
        if self.named[setting]:
            return _submodule(block, self.named[setting], f"model.{setting}")
        for row in _EXCEPTIONS:
            if all(_has(block, name) for name in row[0]):
                return block.get_submodule(row[column])
        fits = [child for name, child in block.named_children() if _is_part(name, child, words)]
        if len(fits) != 1:
            children = _listed([name for name, _ in block.named_children()])
            raise UsageError(
                f"The {setting} of layer {layer} was not found among its block's children {children}: "
                f"name it with model.{setting}."
            )
        return fits[0]


_KNOWN: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()


def _find_blocks(model: nn.Module) -> str:
    """The dotted name of the one module list as long as the model is deep that lies in no other such list."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [name for name, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child) == depth]
    lists = [name for name in lists if not any(name.startswith(f"{outer}.") for outer in lists)]
    if len(lists) == 1:
        return lists[0]
    found = f"{len(lists)} lists of {depth} modules ({_listed(lists)})" if lists else f"no list of {depth} modules"
    children = [f"{name}.{child}" for name, module in model.named_children() for child, _ in module.named_children()]
    raise UsageError(
        f"The decoder blocks were not found: the model has {found}; its parts are {_listed(children)}: "
        "name the list with model.blocks."
    )


def _find_norm(holder: nn.Module, blocks: str) -> nn.Module | None:
    """The first norm after the blocks; else the only one before them (OPT) that is not the embedding's own."""
    names = [name for name, _ in holder.named_children()]
    place = names.index(blocks.rpartition(".")[2])
    norms = [name for name in names if _is_norm(name, holder.get_submodule(name))]
    after = [name for name in norms if names.index(name) > place]
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
        names = _listed([name for name, _ in module.named_children()])
        raise UsageError(f"{setting}={path} names no module of {type(module).__name__}, whose children are {names}.")
    return module.get_submodule(path)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
