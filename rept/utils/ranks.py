"""The rank of this process among those of its run, also before they are connected."""

from __future__ import annotations

from lightning.fabric.utilities.rank_zero import rank_zero_only


def own_rank() -> int:
    """Returns the number of this process, from 0; launchers announce it by environment variables."""
    return int(getattr(rank_zero_only, "rank", 0))
