"""The rank of this process among those of its run, also before they are connected."""

from __future__ import annotations

import os

from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own, without the seconds that it takes

_ANNOUNCED = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # by launchers, in Lightning's order


def own_rank() -> int:
    """Returns the number of this process, from 0: as Lightning has set it, or as the launcher announces it."""
    announced = next((os.environ[name] for name in _ANNOUNCED if name in os.environ), "0")
    return int(getattr(rank_zero_only, "rank", announced))
