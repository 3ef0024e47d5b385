"""The environment of a run: versions, hardware, and the memory that the process has used.

torch is imported when it is needed: it takes seconds, and the report of a run does without.
"""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # macOS reports the peak resident set in bytes, Linux in KiB
PACKAGES = ("rept", "torch", "lightning", "transformers", "tokenizers", "peft", "datasets", "h5py", "numpy")


def environment(seed: int, processes: int) -> dict[str, Any]:
    """Returns the part of provenance.json that describes where the run was made."""
    import torch

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
    """Returns the peak memory of this process in bytes (on a GPU: of the allocations there)."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def reset_peak_memory() -> None:
    """Resets `peak_memory`, where the system can: on a GPU and on Linux."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak resident set to the present one
