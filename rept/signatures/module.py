"""AttributionModule: a model and an extractor as one Lightning module whose predict step reads signatures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from lightning import LightningModule
from torch import Tensor, nn

from rept.errors import UsageError
from rept.model.placement import is_split, place
from rept.types import Batch, Extraction, Key, Signature, Status
from rept.utils.console import say

Extract = Callable[[nn.Module, Batch, Sequence[int]], Signature]


class AttributionModule(LightningModule):
    """Reads the signature of each sample of a batch, and says of each row what became of it.

    The trainer must be built with ``inference_mode=False``: gradients with respect to hidden states are needed.

    Args:
        model: a causal language model whose parameters are frozen.
        extractor: called as ``extractor(model, batch, layers)``.
        layers: layer numbers, from 1.
    """

    def __init__(self, model: nn.Module, extractor: Extract, layers: Sequence[int]) -> None:
        super().__init__()
        # Past torch's registry of submodules: where it lies is for `place` to say, not for Lightning, which would move
        # it to the CPU after each prediction, and all of one that is spread over devices to the first of them.
        object.__setattr__(self, "model", model)
        self.extractor = extractor
        self.layers = list(layers)
        self.underflowed = 0  # rows with a gradient that is exactly 0
        self.halvings = 0  # batches that did not fit on the device and were cut in two
        self._most_tokens = sys.maxsize  # of a batch, as far as the device has shown

    def configure_model(self) -> None:
        place(self.model, self.trainer)

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> Extraction | None:
        """The rows' statuses and signatures; None for a batch that is computed for other ranks' sake alone."""
        signature = self._extract(batch) if len(batch) else {}
        if batch.company:
            if not batch.set_aside:
                return None
            batch, signature = replace(batch.select([]), set_aside=batch.set_aside), {}
        status = torch.where(batch.cut, int(Status.CUT), int(Status.ATTRIBUTED)).to(torch.uint8).cpu()
        signature = {key: block.float().cpu() for key, block in signature.items()}
        status[~_finite(signature, len(batch))] = Status.NON_FINITE
        lost = status == Status.NON_FINITE
        for block in signature.values():
            block[lost] = 0
        self.underflowed += int((underflowed(signature, len(batch)) & ~lost).sum())
        return _with_set_aside(batch, status, signature)

    def extract_whole(self, batch: Batch) -> Signature:
        """The batch's signature, in one piece."""
        with torch.enable_grad():
            return self.extractor(self.model, batch, self.layers)

    def _extract(self, batch: Batch) -> Signature:
        """The batch's signature; a batch too large for the device is done in halves, its rows' order kept.

        What did not fit halves the budget of all that follow: they are cut before they are tried.
        """
        try:
            if len(batch) == 1 or batch.input_ids.numel() <= self._most_tokens:
                return self.extract_whole(batch)
        except torch.cuda.OutOfMemoryError as error:
            if is_split(self.model):  # whose ranks must take equally many passes
                raise UsageError(
                    "A batch does not fit on the device, and where a model is split over devices none can be done in "
                    "two: lower datamodule.tokens_per_batch."
                ) from error
            if len(batch) == 1:
                raise UsageError(
                    f"Row {batch.row.item()} of the {batch.side} data, {batch.length.item():,} tokens long, does not "
                    "fit on the device even alone: lower datamodule.max_length, or give the model more room by "
                    "model.dtype=bfloat16, model.device_map=auto or trainer=sharded."
                ) from error
            self._most_tokens = batch.input_ids.numel() // 2
            say(f"{batch.input_ids.numel():,} tokens do not fit on the device: from here on at most half as many.")
            torch.cuda.empty_cache()
        self.halvings += 1
        middle = len(batch) // 2
        first = self._extract(batch.select(range(middle)))
        second = self._extract(batch.select(range(middle, len(batch))))
        return {key: torch.cat([first[key], second[key]]) for key in first}


def _finite(signature: Signature, rows: int) -> Tensor:
    finite = torch.ones(rows, dtype=torch.bool)
    for block in signature.values():
        finite &= block.isfinite().all(dim=-1)
    return finite


def underflowed(signature: Signature, rows: int) -> Tensor:
    """Which rows (B, bool) have a block of gradients that is zero throughout: too small for the model's dtype."""
    zero = torch.zeros(rows, dtype=torch.bool)
    for key, block in signature.items():
        if key.field.startswith("gradient"):  # an extractor that reads several positions adds their names
            zero |= (block == 0).all(dim=-1).cpu()
    return zero


def _with_set_aside(batch: Batch, status: Tensor, signature: dict[Key, Tensor]) -> Extraction:
    """The batch's rows, then those that no model could see: zero signatures with their reason."""
    lost_rows = torch.tensor([row for row, _ in batch.set_aside], dtype=torch.int64)
    lost_status = torch.tensor([int(reason) for _, reason in batch.set_aside], dtype=torch.uint8)
    zeros = len(lost_rows)
    return Extraction(
        row=torch.cat([batch.row.cpu(), lost_rows]),
        status=torch.cat([status, lost_status]),
        side=batch.side,
        signature={key: torch.cat([block, block.new_zeros(zeros, block.shape[1])]) for key, block in signature.items()},
    )
