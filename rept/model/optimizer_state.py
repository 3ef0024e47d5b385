"""AdamW's state beside its model: moments as safetensors and settings as JSON, both by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rept.utils.json_files import read_json, write_json

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_optimizer_state(folder: Path, optimizer: Optimizer, model: nn.Module) -> None:
    """Writes ``optimizer.safetensors`` (``NAME/exp_avg``, ``NAME/exp_avg_sq``) and ``optimizer.json``.

    NAME is the parameter's name in ``model.named_parameters()``. The JSON file has the optimizer's class and, for each
    name, its number of steps, peak learning rate, betas, eps and weight decay.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments: dict[str, Tensor] = {}
    settings: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, state = names[parameter], optimizer.state.get(parameter, {})
            moments |= {f"{name}/{moment}": state[moment].contiguous().cpu() for moment in MOMENTS if moment in state}
            settings[name] = {
                "step": int(state.get("step", 0)),
                "lr": float(group.get("initial_lr", group["lr"])),  # before warmup and decay
                "betas": list(group["betas"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
            }
    save_file(moments, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", {"class": type(optimizer).__name__, "parameters": settings})


def load_optimizer_state(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Returns ``exp_avg`` and ``exp_avg_sq`` of each parameter, by name, and its settings in ``optimizer.json``."""
    moments = load_file(folder / "optimizer.safetensors")
    settings = read_json(folder / "optimizer.json")["parameters"]
    return {
        name: {moment: moments[f"{name}/{moment}"] for moment in MOMENTS if f"{name}/{moment}" in moments} | described
        for name, described in settings.items()
    }
