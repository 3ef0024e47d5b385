"""Several sites and positions in one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from extractors.sites.attention_output import AttentionOutput
from extractors.sites.mlp_output import MLPOutput
from extractors.sites.reader import SITES, SingleSite, SiteExtractor
from extractors.sites.residual_stream import ResidualStream
from rept.errors import UsageError
from rept.signatures.extractor import Position, Site
from rept.types import FIELDS, PreTrainedModel


class SeveralSites(SiteExtractor):
    """Sites x positions x fields: all sites are read at the same layers and positions.

    What a model learned can show at different positions: a trigger at the last prompt token, a false fact in the mean
    over the text. A scorer that reads both fields finds both.

    Args:
        sites: names in `extractors.sites.reader.SITES`, or objects (in a configuration, each with a ``_target_``).
        fields, position: as in `extractors.sites.reader.SiteExtractor`.

    Raises:
        UsageError: an unknown site, or none.
    """

    def __init__(
        self,
        sites: Sequence[str | SingleSite] = (ResidualStream.name, AttentionOutput.name, MLPOutput.name),
        fields: Sequence[str] = FIELDS,
        position: Position | Sequence[Position] = "last_prompt",
    ) -> None:
        super().__init__(fields, position)
        if not sites:
            raise UsageError(f"Expected extractor.sites to name some of {', '.join(SITES)}, but got none.")
        self.parts = [single_site(site, "extractor.sites") for site in sites]

    def sites(self, model: PreTrainedModel, layers: Sequence[int]) -> dict[Site, nn.Module]:
        return {site: module for part in self.parts for site, module in part.sites(model, layers).items()}


def single_site(site: str | SingleSite, setting: str = "extractor.site") -> SingleSite:
    """Returns the site of a name, or the given one. Raises UsageError for an unknown name."""
    if isinstance(site, SingleSite):
        return site
    if site not in SITES:
        raise UsageError(
            f"Expected {setting} to be a site, {', '.join(SITES)} or the _target_ of a subclass of SingleSite, but got "
            f"{site!r}."
        )
    return SITES[site]()
