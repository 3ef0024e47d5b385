"""One site read at several positions, as fields of their own, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from extractors.sites.reader import POSITIONS, Position, Site, SiteExtractor, at_position
from extractors.sites.several_sites import SITES
from rept.errors import UsageError
from rept.model.hooks import Response
from rept.types import Batch, Signature


class SeveralPositions(SiteExtractor):
    """Fields named ``FIELD_POSITION``, such as ``representation_text_mean``, of one site.

    What was learnt shows at different places: a trigger at the last prompt token, a false fact in the mean of the text.
    A scorer that reads several of these fields sees both.

    Args:
        site: ``residual_stream``, ``attention_output`` or ``mlp_output``.
        positions: any of those of :class:`extractors.sites.reader.SiteExtractor`.
        fields: what is read at each of them, likewise.

    Raises:
        UsageError: an unknown site, position or field, or none.
    """

    def __init__(
        self,
        site: str = "residual_stream",
        positions: Sequence[Position] = ("last_prompt", "text_mean"),
        fields: Sequence[str] = ("representation",),
    ) -> None:
        super().__init__(fields)
        if site not in SITES:
            raise UsageError(f"extractor.site must be one of {', '.join(SITES)}, not {site!r}.")
        if not positions or not set(positions) <= set(POSITIONS):
            raise UsageError(f"extractor.positions must name some of {', '.join(POSITIONS)}, not {list(positions)}.")
        self._site = SITES[site]()
        self._positions = tuple(positions)
        self._read = self.fields
        self.fields = tuple(f"{field}_{position}" for field in fields for position in positions)

    def sites(self, model: nn.Module, layers: Sequence[int]) -> dict[Site, nn.Module]:
        return self._site.sites(model, layers)

    def __call__(self, model: nn.Module, batch: Batch, layers: Sequence[int]) -> Signature:
        response = Response.of(batch.labels)
        everywhere = self._everywhere(model, batch, response, layers, self._read)
        return {
            key._replace(field=f"{key.field}_{position}"): at_position(block, batch, response, position)
            for key, block in everywhere.items()
            for position in self._positions
        }
