"""Fingerprints of what a store was made from, so that signatures are never reused for other inputs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from enum import Enum
from os.path import commonprefix
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.types import PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.digests import text_digest

_SAMPLED = 4096  # elements of each tensor that are read
_UNRELATED = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")  # to what an adapter computes


def of_weights(model: PreTrainedModel) -> str:
    """Fingerprint of a model: its configuration, and names, shapes, types and evenly spaced elements of its tensors.

    It reads at most 4,096 elements of each tensor, so it detects training, merging, quantization or another checkpoint,
    but not an edit of single weights between the sampled ones, or behind them at the end of a small tensor.
    """
    parts: list[str | bytes] = [json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str)]
    offloaded = _offloaded(model)
    for name, tensor in sorted(model.state_dict().items()):
        if name in offloaded:
            weights, key = offloaded[name]
            tensor = weights[key]  # read now, and released before the next
        parts += _sampled(name, tensor)
    return text_digest(*parts)


def _offloaded(model: nn.Module) -> dict[str, tuple[Mapping[str, Tensor], str]]:
    """By name, each tensor that `device_map` keeps off the devices, in memory or on disk: where it is, and its key."""
    found: dict[str, tuple[Mapping[str, Tensor], str]] = {}
    for path, module in model.named_modules():
        weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)  # Accelerate's
        if weights is not None:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found |= {f"{path}.{name}": (weights, name) for name, tensor in own if tensor.is_meta}
    return found


def of_adapter(model: PreTrainedModel) -> str:
    """Fingerprint of the settings and tensors of a PEFT adapter; "none" without one.

    The settings count because LoRA's scale is in no tensor.
    """
    adapters: Mapping[str, Any] = getattr(model, "peft_config", {})  # of PEFT's wrapper, or of Transformers' own mixin
    if not adapters:
        return "none"
    parts: list[str | bytes] = []
    for name, adapter in sorted(adapters.items()):
        settings = {k: v for k, v in sorted(adapter.to_dict().items()) if k not in _UNRELATED and v is not None}
        parts.append(f"{name} {of_settings(settings)}")
    for name, tensor in sorted(model.state_dict().items()):
        if any(f".{adapter}." in f"{name}." for adapter in adapters):
            parts += _sampled(name, tensor)
    return text_digest(*parts)


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of the whole tokenizer, its special tokens and its chat template."""
    backend = tokenizer.backend_tokenizer.to_str()
    return text_digest(backend, str(tokenizer.special_tokens_map), str(tokenizer.chat_template))


def of_settings(part: object, depth: int = 4) -> str:
    """Describes an object by its class and its settings, for objects that no configuration describes.

    The settings are the public attributes, and private ones that are named as an argument of the constructor: other
    private attributes hold computed results. Tensors and arrays are described by type, shape and a digest of their
    content, modules by their tensors, and sets in sorted order.
    """
    if part is None or isinstance(part, str | int | float | Enum):
        return repr(part)
    if isinstance(part, type | FunctionType):
        return f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key}: {of_settings(value, depth)}" for key, value in part.items()) + "}"
    if isinstance(part, list | tuple):
        return "[" + ", ".join(of_settings(value, depth) for value in part) + "]"
    if isinstance(part, set | frozenset):
        return "{" + ", ".join(sorted(of_settings(value, depth) for value in part)) + "}"
    kind = type(part).__qualname__
    if isinstance(part, np.ndarray):
        content = of_settings(part.tolist(), depth) if part.dtype.hasobject else part.tobytes()
        return f"{kind}({part.dtype} {part.shape} {text_digest(content)})"
    if isinstance(part, Tensor):
        return f"{kind}({part.dtype} {tuple(part.shape)} {text_digest(_bytes(part))})"
    if isinstance(part, nn.Module):
        tensors = sorted(part.state_dict().items())
        return f"{kind}({text_digest(*(one for name, tensor in tensors for one in _sampled(name, tensor)))})"
    if not hasattr(part, "__dict__"):  # paths, dtypes, ranges, patterns
        return repr(part) if " at 0x" not in repr(part) else kind
    held: dict[str, Any] = {}
    if depth:
        own = {f"_{name}" for name in inspect.signature(type(part).__init__).parameters}
        held = {name: value for name, value in vars(part).items() if not name.startswith("_") or name in own}
    settings = (f"{name.lstrip('_')}={of_settings(value, depth - 1)}" for name, value in sorted(held.items()))
    return f"{kind}({', '.join(settings)})"


def check_fingerprints(stored: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raises UsageError, naming each difference, unless what is stored was made from what is asked for."""
    pairs = [(name, str(stored[name]), str(asked[name])) for name in asked if name in stored]
    different = [f"{name} was {_short(old, new)}, now {_short(new, old)}" for name, old, new in pairs if old != new]
    if different:
        raise UsageError(
            f"{where} holds signatures made differently: {'; '.join(different)}. Name another folder by out=."
        )


def _short(text: str, other: str) -> str:
    """At most 80 characters of a text, from shortly before its first difference from another one."""
    start = len(commonprefix([text, other])) - 20
    text = "…" + text[start:] if start > 40 else text
    return text if len(text) <= 80 else text[:79] + "…"


def _sampled(name: str, tensor: Tensor) -> tuple[str, bytes]:
    """A tensor's name, shape and dtype, and evenly spaced elements; none of a tensor without storage."""
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    content = b"" if tensor.is_meta else _bytes(flat[::step][:_SAMPLED])
    return f"{name} {tuple(tensor.shape)} {tensor.dtype}", content


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1).contiguous().cpu()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
