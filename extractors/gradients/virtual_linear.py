"""The gradient that a linear layer at a site would have: all response positions in one matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from extractors.gradients.projection import projection_to
from extractors.gradients.weights import Factors
from extractors.sites.reader import SingleSite, SiteExtractor
from extractors.sites.several_sites import single_site
from rept.model.hooks import Response
from rept.signatures.extractor import Reading, Site
from rept.types import FIELDS, Batch, Key, PreTrainedModel, Signature
from rept.utils.tensors import unit


class VirtualLinear(SiteExtractor):
    """``G = sum_i ghat_i hhat_i^T`` over the positions i that predict the response, each row scaled to norm 1.

    Without the scaling, G would be the gradient of a linear layer at the site with input h and output gradient g. The
    inner product of two samples weighs all pairs of their positions: ``G . G' = sum_ij (ghat_i . g'hat_j) (hhat_i .
    h'hat_j)``, so positions count that agree in both representation and gradient. With one position it is
    `scorers.gradient_representation`.

    Args:
        site: as in `extractors.sites.several_sites.SeveralSites`.
        dimension: numbers that are kept of G, see `extractors.gradients.projection`; null: all of its width x width.
        seed: of the projection.

    Raises:
        UsageError: an unknown site, or a dimension below 1.
    """

    def __init__(self, site: str | SingleSite = "residual_stream", dimension: int | None = 8192, seed: int = 0) -> None:
        super().__init__()
        self.fields = ("outer",)
        self._site = single_site(site)
        self.projection = projection_to(dimension, seed)

    @property
    def readings(self) -> dict[str, Reading]:
        return {}

    def sites(self, model: PreTrainedModel, layers: Sequence[int]) -> dict[Site, nn.Module]:
        return self._site.sites(model, layers)

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        response = Response.of(batch.labels)
        states = self.everywhere(model, batch, response, layers, FIELDS)
        count = tuple(response.count.tolist())
        signature = {}
        for site, layer in dict.fromkeys(key[:2] for key in states):
            h, g = (_rows(states[Key(site, layer, field)], response) for field in FIELDS)
            factors = Factors(g, h, count)
            # The same matrices at every layer, because layers are scored separately.
            block = self.projection.of_factors(site, factors) if self.projection else factors.whole().flatten(1)
            signature[Key(site, layer, "outer")] = block
        return signature


def _rows(block: Tensor, response: Response) -> Tensor:
    """Rows (n D) of norm 1 at the positions that predict the response, from states (B T D); zero rows stay zero."""
    return unit(block.flatten(0, 1)[response.position.to(block.device)].float())
