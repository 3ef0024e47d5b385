"""RapidIn: weight gradients compressed by one shuffle, random signs and sums of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.projection import seeded
from extractors.gradients.weights import Factors
from rept.types import Batch


class RapidIn(ParameterGradient):
    """The "RapidGrad" of RapidIn (Lin et al. 2024, arXiv 2405.11724), together with `scorers.inner_product`.

    Each weight's gradient is scaled to norm 1 (the paper's layer-wise normalization), shuffled, and multiplied by
    random signs. Then the neighbours in each of ``dimension`` groups are summed, and the results of all weights added.

    Shuffle and signs are drawn once for each weight and shared by all samples, queries included: a coordinate has the
    same group and sign in any two gradients, so their inner product is kept on average. With one shuffle a sample, as
    in the official code, equal coordinates would share a group only by chance, and the inner product of any two
    gradients would be 0 on average. The paper shuffles rows and columns alternately, to be cheap; here it is one
    permutation.

    Args:
        weights: as in `extractors.gradients.parameter_gradient`.
        dimension: groups; 65,536 in the paper.
        seed: of shuffle and signs.
    """

    def __init__(self, weights: str = "auto", dimension: int = 65536, seed: int = 0) -> None:
        super().__init__(weights, dimension, normalize=True)
        self.dimension = dimension
        self.seed = seed
        self._known: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def project(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        gradients = factors.whole().flatten(1)  # only one weight's gradients are whole at a time
        size = -(-gradients.shape[1] // self.dimension)  # of a group
        padded = pad(gradients, (0, size * self.dimension - gradients.shape[1]))
        order, sign = self._drawn(name, padded.shape[1], padded.device)
        return (padded[:, order] * sign).view(len(padded), self.dimension, size).sum(2)

    def _drawn(self, name: str, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if (name, device) not in self._known:
            generator = seeded(self.seed, name)
            order = torch.randperm(size, generator=generator)
            sign = torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
            self._known[name, device] = order.to(device), sign.to(device)
        return self._known[name, device]
