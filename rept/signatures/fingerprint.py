"""Fingerprints: what a store was made from, so that a stored signature is never taken for another's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.utils.digests import text_digest

_SAMPLED = 4096  # elements of each tensor that are read


def of_weights(model: nn.Module) -> str:
    """Of the names, shapes, types and evenly spaced elements of all parameters and buffers, and of the configuration.

    Cheap (a few thousand elements a tensor), so an edit of single weights between the sampled ones is not seen;
    training, merging, quantizing or another checkpoint is.
    """
    parts = [json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str)]
    offloaded = _offloaded(model)
    for name, tensor in sorted(model.state_dict().items()):
        if name in offloaded:
            module, own = offloaded[name]
            tensor = module._hf_hook.weights_map[own]  # read now, and let go before the next
        parts.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
        if tensor.device.type != "meta":
            parts.append(_sample(tensor))
    return text_digest(*parts)


def _offloaded(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The module and the name therein of each tensor that `device_map` keeps off the devices, in memory or on disk."""
    found = {}
    for path, module in model.named_modules():
        if getattr(getattr(module, "_hf_hook", None), "weights_map", None) is not None:
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in tensors:
                if tensor.device.type == "meta":
                    found[f"{path}.{name}"] = module, name
    return found


def of_adapter(model: nn.Module) -> str:
    """Of the settings and tensors of a PEFT adapter; "none" where there is none.

    The settings count: LoRA's scale stands in no tensor.
    """
    found = [
        f"{name} {json.dumps(_settings(adapter), sort_keys=True)}"
        for name, adapter in sorted(getattr(model, "peft_config", {}).items())
    ]
    if not found:
        return "none"
    names = [f".{name}." for name in model.peft_config]
    tensors = sorted((n, t) for n, t in model.state_dict().items() if any(name in f"{n}." for name in names))
    return text_digest(*found, *(part for name, tensor in tensors for part in (name, _sample(tensor))))


def _settings(adapter: Any) -> dict[str, str]:
    """What an adapter's configuration says, but for where it was found, who wrote it, and what it says of training."""
    unlike = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
    told = {name: value for name, value in adapter.to_dict().items() if name not in unlike and value is not None}
    return {name: str(sorted(value) if isinstance(value, set) else value) for name, value in told.items()}


def of_settings(part: Any, depth: int = 4) -> str:
    """An object's class and what it was set to, in words: numbers, texts, and collections or objects of such.

    For a part that was made in Python, which no configuration describes. Told are its public attributes, and private
    ones that are named as an argument of its constructor: others hold what it has worked out.
    """
    if part is None or isinstance(part, str | bool | int | float):
        return repr(part)
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key}: {of_settings(value, depth)}" for key, value in part.items()) + "}"
    if isinstance(part, list | tuple):
        return "[" + ", ".join(of_settings(value, depth) for value in part) + "]"
    kind, held = type(part), {}
    if depth and hasattr(part, "__dict__") and not isinstance(part, Tensor | nn.Module | type):
        own = {f"_{name}" for name in inspect.signature(kind).parameters}
        held = {name: value for name, value in vars(part).items() if not name.startswith("_") or name in own}
    told = ", ".join(f"{name.lstrip('_')}={of_settings(value, depth - 1)}" for name, value in sorted(held.items()))
    return f"{kind.__qualname__}({told})"


def of_tokenizer(tokenizer: Any) -> str:
    """Of the whole tokenizer, its special tokens and its chat template."""
    backend = tokenizer.backend_tokenizer.to_str()
    return text_digest(backend, str(tokenizer.special_tokens_map), str(tokenizer.chat_template))


def check_fingerprints(stored: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raises UsageError, naming each difference, unless what is stored was made from what is asked for."""
    different = [name for name in asked if name in stored and stored[name] != asked[name]]
    if different:
        told = "; ".join(f"{name} was {_short(stored[name])}, now {_short(asked[name])}" for name in different)
        raise UsageError(
            f"{where} holds signatures made differently: {told}. Name another folder by out=, or delete this one."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    picked = flat[::step][:_SAMPLED].contiguous().cpu()
    return picked.view(torch.uint8).numpy().tobytes() if picked.numel() else b""
