"""AttributionModule: a model and an extractor as one Lightning module whose predict step reads signatures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from lightning import LightningModule
from torch import Tensor

from rept.errors import UsageError
from rept.model.placement import place
from rept.model.splitting import is_split
from rept.signatures.extractor import Extractor
from rept.types import Batch, Extraction, PreTrainedModel, Signature, Status
from rept.utils.console import say


class AttributionModule(LightningModule):
    """Reads the signature and the status of each sample of a batch.

    Gradients with respect to hidden states are needed, so the trainer must be built with ``inference_mode=False``. The
    model's parameters must be frozen. Layers count from 1.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, extractor: Extractor, layers: Sequence[int]) -> None:
        super().__init__()
        # Not a registered submodule, because Lightning would then move it to the CPU after each prediction, and a model
        # that is spread over devices to the first of them. `place` decides where it is.
        object.__setattr__(self, "model", model)
        self.extractor = extractor
        self.layers = list(layers)
        self.underflowed = 0  # rows with a gradient that is exactly 0
        self.halvings = 0  # batches that did not fit on the device and were halved
        self._most_tokens = sys.maxsize  # of a batch, as far as the device has shown

    def configure_model(self) -> None:
        place(self.model, self.trainer)

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> Extraction | None:
        """Returns statuses and signatures; None for a batch that is only run to keep the ranks in step."""
        signature = self._extract(batch) if len(batch) else {}
        if batch.filler:
            if not batch.set_aside:
                return None
            batch, signature = replace(batch.select([]), set_aside=batch.set_aside), {}
        signature = {key: block.float().cpu() for key, block in signature.items()}
        status = torch.where(batch.cut, int(Status.CUT), int(Status.ATTRIBUTED)).to(torch.uint8).cpu()
        for block in signature.values():
            norm = torch.linalg.vector_norm(block, dim=-1, dtype=torch.float64)
            status[~(norm <= torch.finfo(torch.float32).max)] = Status.NON_FINITE  # the store keeps norms in float32
        lost = status == Status.NON_FINITE
        for block in signature.values():
            block[lost] = 0
        self.underflowed += int((underflowed(signature, len(batch)) & ~lost).sum())
        return _with_set_aside(batch, status, signature)

    def _extract(self, batch: Batch) -> Signature:
        """The batch's signature; a batch that does not fit on the device is processed in halves, in the same order.

        After a failure, larger batches than half of the failed one are halved before they are tried.
        """
        tokens = batch.input_ids.numel()
        try:
            if len(batch) == 1 or tokens <= self._most_tokens:
                with torch.enable_grad():
                    return self.extractor(self.model, batch, self.layers)
        except torch.cuda.OutOfMemoryError as error:
            if is_split(self.model):  # all ranks must take the same number of passes
                raise UsageError(
                    "A batch does not fit on the device, and batches of a model that is split over devices cannot be "
                    "halved: lower datamodule.tokens_per_batch."
                ) from error
            if len(batch) == 1:
                raise UsageError(
                    f"Row {batch.row.item()} of the {batch.side} data, {batch.length.item():,} tokens long, does not "
                    "fit on the device even alone: lower datamodule.max_length, or reduce the model's memory by "
                    "model.dtype=bfloat16, model.device_map=auto or trainer=sharded."
                ) from error
            self._most_tokens = tokens // 2
            say(f"{tokens:,} tokens do not fit on the device: from here on at most half as many.")
            torch.cuda.empty_cache()
        self.halvings += 1
        middle = len(batch) // 2
        first = self._extract(batch.select(range(middle)))
        second = self._extract(batch.select(range(middle, len(batch))))
        return {key: torch.cat([first[key], second[key]]) for key in first}


def underflowed(signature: Signature, rows: int) -> Tensor:
    """Which rows (B, bool) have a gradient block of zeros only, too small for the model's dtype."""
    zero = torch.zeros(rows, dtype=torch.bool)
    for key, block in signature.items():
        if key.field.startswith("gradient"):  # also gradient_POSITION
            zero |= (block == 0).all(dim=-1).cpu()
    return zero


def _with_set_aside(batch: Batch, status: Tensor, signature: Signature) -> Extraction:
    """The batch's rows, followed by those set aside, whose signatures are zero."""
    rows = [row for row, _ in batch.set_aside]
    reasons = [int(reason) for _, reason in batch.set_aside]
    return Extraction(
        row=torch.cat([batch.row.cpu(), torch.tensor(rows, dtype=torch.int64)]),
        status=torch.cat([status, torch.tensor(reasons, dtype=torch.uint8)]),
        side=batch.side,
        signature={
            key: torch.cat([block, block.new_zeros(len(rows), block.shape[1])]) for key, block in signature.items()
        },
    )
