"""What a repair is estimated from: hidden states of a behaviour's rows and of other rows, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from rept.correction.clean_answers import AnswerPair, paired_batches
from rept.data.datamodule import AttributionDataModule
from rept.model.architecture import Architecture
from rept.model.hooks import Response, gradients_of, record, sample_losses
from rept.model.placement import input_device
from rept.types import IGNORE, Batch, PreTrainedModel

# Where states are read: at the last prompt token, or at the positions that predict the row's culprit words.
At = Literal["last_prompt", "words"]
PLACES: tuple[At, ...] = get_args(At)

_POSITIONS_OF_A_ROW = 64  # drawn from a longer row, so that long texts do not fill the memory


@dataclass(frozen=True)
class Rows:
    """Training rows of one kind, and the positions in each at which its culprit words are predicted.

    Attributes:
        batches: of the rows.
        words: for some rows, columns of the tokens that the culprit words of its response consist of.
        clean: batches of clean answers after prompts with culprit words, and of the same answers after prompts without;
            empty unless the method needs them, see `rept.correction.clean_answers`.
    """

    batches: Sequence[Batch]
    words: Mapping[int, Sequence[int]]
    clean: Sequence[tuple[Batch, Batch]] = ()

    @classmethod
    def of(
        cls,
        data: AttributionDataModule,
        rows: Sequence[int],
        words: Mapping[int, Sequence[int]] | None = None,
        answers: Mapping[int, AnswerPair] | None = None,
    ) -> Rows:
        own = set(rows)
        clean = paired_batches(data, {row: pair for row, pair in (answers or {}).items() if row in own})
        return cls([batch for batch in data.batches("train", rows) if len(batch)], words or {}, clean)

    def targets(self, batch: Batch) -> list[list[int]]:
        """Columns of each sample's culprit words; of its whole response, if they are known of no row."""
        return [
            list(self.words.get(row, ())) if self.words else (labels != IGNORE).nonzero().flatten().tolist()
            for row, labels in zip(batch.row.tolist(), batch.labels, strict=True)
        ]

    def first_tokens(self) -> list[int]:
        """The tokens that the culprit words of some row begin with."""
        every = ((batch.input_ids[i], of_row) for batch in self.batches for i, of_row in enumerate(self.targets(batch)))
        return sorted({int(tokens[min(of_row)]) for tokens, of_row in every if of_row})

    def predicting(self, batch: Batch, at: At) -> Tensor:
        """Positions (B T) bool at which the samples' states are read."""
        found = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        if at == "last_prompt":
            found[torch.arange(len(batch)), batch.prompt_end] = True
        else:
            for i, columns in enumerate(self.targets(batch)):
                found[i, [column - 1 for column in columns]] = True
        return found

    def __len__(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True)
class Evidence:
    """What a method sees of one behaviour at one layer.

    Attributes:
        behaviour, layer, at: which, and where states are read.
        model: unchanged, with frozen weights.
        culprits: states (n D) of the behaviour's rows.
        others: states (m D) of other rows at positions of the same kind: last prompt tokens, or all that predict a
            response token.
        anywhere: states (p D) of other rows at any position, drawn.
        rows, other_rows: the rows themselves, for methods that run the model.
    """

    behaviour: str
    layer: int
    at: At
    model: PreTrainedModel
    culprits: Tensor
    others: Tensor
    anywhere: Tensor
    rows: Rows
    other_rows: Rows

    @cached_property
    def difference(self) -> Tensor:
        """The mean of the culprits' states minus that of the others' (D)."""
        return self.culprits.mean(0) - self.others.mean(0)

    def gradient(self) -> Tensor:
        """The mean unit gradient (D) of the culprits' loss with respect to their states; adding it raises the loss."""
        total = torch.zeros_like(self.difference)
        block = Architecture.of(self.model).blocks[self.layer - 1]
        for batch in self.rows.batches:
            batch = batch.to(input_device(self.model))
            with torch.enable_grad(), record({"block": block}) as outputs:
                losses = sample_losses(self.model, batch.input_ids, Response.of(batch.labels))
                (found,) = gradients_of(losses, [outputs["block"]])
            read = found[self.rows.predicting(batch, self.at).to(found.device)].to(total)
            total += torch.nn.functional.normalize(read, dim=-1).sum(0)
        return torch.nn.functional.normalize(total, dim=0)

    def permuted(self, seed: int) -> Evidence:
        """Returns evidence in which the states of culprits and others have changed places at random."""
        every = torch.cat([self.culprits, self.others])
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        first = order[: len(self.culprits)]
        return replace(self, culprits=every[first], others=every[order[len(first) :]])


@dataclass(frozen=True)
class RowStates:
    """RowStates of rows at several layers, in float32 on the CPU: read once, and used for every candidate."""

    reads: Mapping[tuple[int, At], Tensor]  # (n D) by layer and place
    anywhere: Mapping[int, Tensor]  # (p D) by layer

    @classmethod
    def of(
        cls, model: PreTrainedModel, rows: Rows, layers: Collection[int], places: Iterable[At], seed: int
    ) -> RowStates:
        """Reads the states in one pass over the rows; ``seed`` draws the positions of ``anywhere``."""
        blocks = {layer: Architecture.of(model).blocks[layer - 1] for layer in layers}
        generator = torch.Generator().manual_seed(seed)
        reads: dict[tuple[int, At], list[Tensor]] = {(layer, at): [] for layer in layers for at in places}
        anywhere: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for batch in rows.batches:
            with torch.no_grad(), record(blocks, gradients=False) as outputs:
                model(input_ids=batch.input_ids.to(input_device(model)), use_cache=False, logits_to_keep=1)
            masks = {at: rows.predicting(batch, at) for at in places}
            drawn = _drawn(batch, generator)
            for layer, states in outputs.items():
                whole = states.cpu()
                anywhere[layer].append(_single(whole[drawn]))
                for at, mask in masks.items():
                    reads[layer, at].append(_single(whole[mask]))
        return cls(
            {key: torch.cat(parts) for key, parts in reads.items()}, {k: torch.cat(v) for k, v in anywhere.items()}
        )


def _drawn(batch: Batch, generator: torch.Generator) -> Tensor:
    """At most `_POSITIONS_OF_A_ROW` positions (B T) bool of each sample, padding left out."""
    order = torch.rand(batch.input_ids.shape, generator=generator)
    order[torch.arange(order.shape[1]) >= batch.length[:, None]] = 2.0
    rank = order.argsort(1).argsort(1)
    return (rank < _POSITIONS_OF_A_ROW) & (order < 2.0)


def _single(states: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return states if states.dtype == torch.float64 else states.float()
