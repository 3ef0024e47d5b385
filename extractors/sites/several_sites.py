"""Any number of sites, read in one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from extractors.sites.attention_output import AttentionOutput
from extractors.sites.mlp_output import MLPOutput
from extractors.sites.reader import FIELDS, Position, SingleSite, Site, SiteExtractor
from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError

SITES: dict[str, type[SingleSite]] = {kind.name: kind for kind in (ResidualStream, AttentionOutput, MLPOutput)}


class SeveralSites(SiteExtractor):
    """The sites named, at the same layers, fields and position.

    Args:
        sites: any of ``residual_stream``, ``attention_output`` and ``mlp_output``.
        fields: as in :class:`extractors.sites.reader.SiteExtractor`.
        position: likewise.

    Raises:
        UsageError: an unknown site, or none.
    """

    def __init__(
        self,
        sites: Sequence[str] = tuple(SITES),
        fields: Sequence[str] = FIELDS,
        position: Position = "last_prompt",
    ) -> None:
        super().__init__(fields, position)
        if not sites or not set(sites) <= set(SITES):
            raise UsageError(f"extractor.sites must name some of {', '.join(SITES)}, not {list(sites)}.")
        self.parts = [SITES[name](fields, position) for name in sites]

    def sites(self, model: nn.Module, layers: Sequence[int]) -> dict[Site, nn.Module]:
        return {site: module for part in self.parts for site, module in part.sites(model, layers).items()}
