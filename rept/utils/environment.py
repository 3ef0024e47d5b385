"""The environment of a run: versions, hardware, and the memory that the process has used."""

from __future__ import annotations

import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
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


def peak_memory() -> int:
    """Bytes: the most memory this process has held so far (on a GPU: the most allocated there)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory() -> None:
    """Lets `peak_memory` count from now on, where the system can: on a GPU and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak resident set to the present one
