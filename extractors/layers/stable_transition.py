"""The phase transition by a vote of bootstrap samples, with an interval of layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from extractors.layers.phase_transition import adjacent_cosine
from rept.errors import UsageError
from rept.signatures.layer_strategy import LayerChoice
from rept.types import Batch, PreTrainedModel


class StablePhaseTransition:
    """The layer that most bootstrap samples of the probe choose as their phase transition.

    Each sample draws as many probe rows as there are, with replacement, and votes as
    `extractors.layers.phase_transition.PhaseTransition` chooses; ties go to the earlier layer. The reason gives the
    percentile interval of the chosen layers, and ``agreement`` is the share of votes.

    Args:
        n: training rows in the probe.
        tolerance: as for the phase transition: a sample without a clear minimum votes for the last layer.
        samples: bootstrap samples.
        coverage: of the interval.
        seed: of the bootstrap samples.

    Raises:
        UsageError: a number is out of its range.
    """

    def __init__(
        self, n: int = 64, tolerance: float = 0.01, samples: int = 1000, coverage: float = 0.95, seed: int = 0
    ) -> None:
        if n < 1 or samples < 1 or not 0 < coverage < 1:
            raise UsageError(
                "Expected layers.n and layers.samples to be at least 1 and layers.coverage between 0 and 1, "
                f"but got {n}, {samples} and {coverage}."
            )
        self.probe_rows = n
        self.tolerance, self.samples, self.coverage, self.seed = tolerance, samples, coverage, seed

    def __call__(self, model: PreTrainedModel, probe: Iterable[Batch]) -> LayerChoice:
        curves = adjacent_cosine(model, probe)
        votes = self._votes(curves)  # (samples)
        count = votes.bincount()
        layer = int(count.argmax())
        share = float(count[layer]) / self.samples
        tail = (1 - self.coverage) / 2
        low, high = (int(votes.double().quantile(q, interpolation="nearest")) for q in (tail, 1 - tail))
        reason = (
            f"{share:.0%} of {self.samples:,} bootstrap samples of {len(curves)} probe rows choose layer {layer}; "
            f"{self.coverage:.0%} interval: {low} to {high}."
        )
        return LayerChoice([layer], reason, curve=curves.mean(0).tolist(), agreement=share, probes=curves.tolist())

    def _votes(self, curves: Tensor) -> Tensor:
        """The layer that each bootstrap sample of curves (n L-1) chooses."""
        last = curves.shape[1] + 1
        if curves.shape[1] < 2:  # the only pair ends in the final norm
            return torch.full((self.samples,), last)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(curves), (self.samples, len(curves)), generator=generator)
        candidates = torch.stack([curves[rows].mean(0) for rows in drawn])[:, :-1]  # (samples L-2)
        clear = candidates.amax(1) - candidates.amin(1) >= self.tolerance
        return torch.where(clear, candidates.argmin(1) + 2, last)
