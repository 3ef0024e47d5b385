"""What a run was made with: versions, hardware, seed."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("rept", "torch", "lightning", "transformers", "tokenizers", "peft", "datasets", "h5py", "numpy")


def environment(seed: int, processes: int) -> dict[str, Any]:
    """The part of provenance.json that tells where the run was made."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "processes": processes,
        },
        "seed": seed,
    }
