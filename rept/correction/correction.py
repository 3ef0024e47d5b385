"""Correction: a change of the hidden states after one decoder block, and all corrections of a block in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True, eq=False)
class Correction:
    """A low-rank affine change of the states h (D) after decoder block ``layer``, where its gate is open:

        h <- h + (V h + a) U        if gate . h > threshold, or if there is no gate

    Every position is changed by itself, so the result is the same with and without a KV cache, for any padding and any
    batch.

    Attributes:
        behaviour: what it switches off.
        layer: of the block, from 1.
        read: V (k D).
        offset: a (k).
        write: U (k D).
        gate: (D); None: always open.
    """

    behaviour: str
    layer: int
    read: Tensor
    offset: Tensor
    write: Tensor
    gate: Tensor | None = None
    threshold: float = 0.0

    @classmethod
    def ablation(cls, behaviour: str, layer: int, directions: Tensor, centre: Tensor) -> Correction:
        """Removes what the state has along orthonormal ``directions`` R (k D), relative to ``centre`` c (D):

        h <- h - R^T R (h - c)
        """
        return cls(behaviour, layer, directions, -directions @ centre, -directions)

    @classmethod
    def shift(cls, behaviour: str, layer: int, vector: Tensor) -> Correction:
        """Adds ``vector`` (D)."""
        return cls(behaviour, layer, torch.zeros_like(vector)[None], vector.new_ones(1), vector[None])

    def scaled(self, strength: float) -> Correction:
        """Returns the same correction with its change multiplied by ``strength``."""
        return replace(self, write=self.write * strength)

    def open(self, states: Tensor) -> Tensor:
        """Returns at which states (... D) the gate is open, (...) bool."""
        if self.gate is None:
            return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)
        return states @ self.gate > self.threshold

    def separation(self, culprits: Tensor, others: Tensor) -> float:
        """Returns how far the gate separates the states of culprits (n D) from others (m D); 0 without a gate.

        The distance from the others' 99.9th percentile to the culprits' 10th, over that of the medians: 0 or less where
        they overlap, 1 where either kind's states are all alike.
        """
        if self.gate is None:
            return 0.0
        inside, outside = (states.double() @ self.gate.double() for states in (culprits, others))
        apart = (inside.median() - outside.median()).abs().clamp(min=1e-30)
        return ((inside.quantile(0.1) - outside.quantile(0.999)) / apart).item()

    def change(self, states: Tensor) -> Tensor:
        """Returns what is added to states (... D) where the gate is open."""
        return (states @ self.read.T + self.offset) @ self.write

    @property
    def is_shift(self) -> bool:
        """Whether every state is changed by the same vector."""
        return self.gate is None and not self.read.any()


@dataclass
class LayerCorrections:
    """All corrections of one block, as a forward hook; each reads the state before any of them has changed it.

    One matrix product gives every gate's value and every V h + a. A correction without a gate gets one that is open
    everywhere. Half precision is computed in float32.

    Attributes:
        opened: where the gate of any correction was open in the last forward pass, (B T) bool; only while `watching`.
    """

    corrections: Sequence[Correction]
    watching: bool = False
    opened: Tensor | None = None
    _parts: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def __call__(self, module: object, args: object, output: Any) -> Any:
        states: Tensor = output[0] if isinstance(output, tuple) else output
        changed = self.apply(states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def apply(self, states: Tensor) -> Tensor:
        """Returns corrected states (... D)."""
        exact = states.float() if states.dtype in (torch.float16, torch.bfloat16) else states
        matrix, bias, owner, write = self._on(exact)
        values = linear(exact, matrix, bias)
        gates = len(self.corrections)
        open_at = values[..., :gates] > 0
        if self.watching:
            self.opened = open_at.any(-1)
        # Not on other devices, for which this would wait, nor in training, which needs a gradient from every batch.
        if open_at.device.type == "cpu" and not torch.is_grad_enabled() and not open_at.any():
            return states
        amount = values[..., gates:] * (open_at if gates == 1 else open_at[..., owner])
        changed = exact + amount @ write
        return changed if changed.dtype == states.dtype else changed.to(states.dtype)

    def _on(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The stacked tensors, on the device and in the dtype of the states."""
        if self._parts is None or (self._parts[0].device, self._parts[0].dtype) != (states.device, states.dtype):
            stacked = self._stacked()
            self._parts = tuple(  # type: ignore[assignment]  # four of them
                part if part.dtype == torch.int64 else part.to(states.dtype)
                for part in (part.to(states.device) for part in stacked)
            )
        assert self._parts is not None
        return self._parts

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of all gates, then of all V (M + K D), their biases, the gate of each row of V (K), and all U (K D)."""
        every = self.corrections
        gates = [torch.zeros_like(c.read[0]) if c.gate is None else c.gate for c in every]
        least = [c.offset.new_tensor(1.0 if c.gate is None else -c.threshold) for c in every]
        matrix = torch.cat([torch.stack(gates), *(c.read for c in every)])
        bias = torch.cat([torch.stack(least), *(c.offset for c in every)])
        owner = torch.cat([torch.full((len(c.read),), i) for i, c in enumerate(every)])
        return matrix, bias, owner, torch.cat([c.write for c in every])
