"""Checks of a user's own model, tokenizer and rows: the batched path against the one-sample oracle, and the template.

Every check is an error that was measured, beside its tolerance, and what mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.placement import input_device
from rept.signatures.module import underflowed
from rept.types import IGNORE, Batch, Key, Signature

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}  # of a row's norm, in a sound model
_BATCH = "set model.attn_implementation=eager or model.dtype=float32; failing that datamodule.tokens_per_batch=1"


@dataclass(frozen=True)
class Check:
    """One figure that was measured on the user's own model."""

    name: str
    error: float
    tolerance: float
    mend: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # a NaN fails


def checks(
    model: nn.Module, extractor: Any, datamodule: Any, layers: Sequence[int], rows: Sequence[int]
) -> list[Check]:
    """All checks over some training rows.

    Args:
        model: frozen, in evaluation mode, on its device.
        extractor: reads sites at all positions (`extractors.sites.reader.SiteExtractor`).
        datamodule: its tokenizer attached.
        layers: numbers from 1.
        rows: numbers of training rows that can be attributed.

    Raises:
        UsageError: an extractor that the oracle does not know, or no rows.
    """
    if not rows:
        raise UsageError(
            "Expected training rows that can be attributed, but there is none among the first ones: with nothing to "
            "compare, nothing is verified."
        )
    if not hasattr(extractor, "position") or not set(extractor.fields) <= {"representation", "gradient"}:
        raise UsageError(
            f"There is nothing to hold {type(extractor).__name__} against: verify the site that it reads, by "
            "extractor=residual_stream, attention_output, mlp_output or several_sites."
        )
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    device = input_device(model)
    batches = [batch.to(device) for batch in datamodule.batches("train", rows)]
    fast = [extractor(model, batch, layers) for batch in batches]
    slow = [
        _oracle(model, batch, signature, extractor.position) for batch, signature in zip(batches, fast, strict=True)
    ]
    padded = [extractor(model, _padded(batch), layers) for batch in batches]
    underflow = sum(int(underflowed(one, len(batch)).sum()) for one, batch in zip(fast, batches, strict=True))
    found = [
        Check("batched path against the one-sample oracle", _worst(fast, slow), tolerance, _BATCH),
        Check("more padding on the right", _worst(fast, padded), tolerance, _BATCH),
        Check("rows whose gradient underflows to 0", underflow, 0, "set model.dtype=float32 or bfloat16"),
    ]
    if any(len(batch) > 1 for batch in batches):
        single = [_one_by_one(model, extractor, batch, layers) for batch in batches]
        found.insert(1, Check("batch against single samples", _worst(fast, single), tolerance, _BATCH))
    if model.dtype in _ROUNDING and not getattr(model, "is_quantized", False):
        found.append(dtype_check(model, extractor, batches, layers))
    return found + template_checks(datamodule, rows)


def template_checks(datamodule: Any, rows: Sequence[int]) -> list[Check]:
    """BOS, the place of the response, and the prompt as a prefix of the whole text, as shares of the rows that fail."""
    encoder = datamodule.encoder
    samples = [datamodule.sample("train", row) for row in rows]
    bos = [encoder.leading_bos(sample) for sample in samples]
    encoded = [encoder(sample) for sample in samples]
    mask = [_mask_fails(sample, one) for sample, one in zip(samples, encoded, strict=True)]
    prefix = [
        encoder.prompt(sample) != one.input_ids[: one.prompt_length]
        for sample, one in zip(samples, encoded, strict=True)
    ]
    return [
        Check(
            "rows whose template writes two BOS", _share(count > 1 for count in bos), 0, "take one out of the template"
        ),
        Check(
            "rows whose response mask misses the response", _share(mask), 0, "mend the chat template's assistant turn"
        ),
        Check(
            "rows whose prompt is no prefix of the whole text",
            _share(prefix),
            0,
            "harmless for the signature, but generation starts elsewhere: mend the template's generation prompt",
        ),
    ]


def dtype_check(model: nn.Module, extractor: Any, batches: Sequence[Batch], layers: Sequence[int]) -> Check:
    """The model's own dtype against the next wider one: how much of a row its rounding moves. Holds a second model."""
    wider = torch.float64 if model.dtype == torch.float32 else torch.float32
    own = [extractor(model, batch, layers) for batch in batches]
    reference = deepcopy(model).to(wider)
    exact = [extractor(reference, batch, layers) for batch in batches]
    name = f"{_name(model.dtype)} against {_name(wider)}"
    return Check(name, _worst(own, exact), _ROUNDING[model.dtype], f"set model.dtype={_name(wider)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mask_fails(sample: Any, encoded: Any) -> bool:
    start = encoded.pieces[encoded.prompt_length][0]
    response = sample.response.strip()
    shown = encoded.text[start:].strip()
    return not (shown.startswith(response[: len(shown)]) if encoded.cut else response in shown)


def _oracle(model: nn.Module, batch: Batch, signature: Signature, position: str) -> Signature:
    rows: dict[Key, list[Tensor]] = {key: [] for key in signature}
    places = {(key.site, key.layer) for key in signature}
    for ids, labels in oracle.samples(batch):
        for site, layer in places:
            read = oracle.signature(oracle.states(model, ids, labels, layer, site), labels, position)
            for key in rows:
                if key[:2] == (site, layer):
                    rows[key].append(getattr(read, key.field).float())
    return {key: torch.stack(values) for key, values in rows.items()}


def _one_by_one(model: nn.Module, extractor: Any, batch: Batch, layers: Sequence[int]) -> Signature:
    parts = [extractor(model, batch.select([i]), layers) for i in range(len(batch))]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _padded(batch: Batch, more: int = 7) -> Batch:
    """The same samples with more padding: repeats of token 0, which no real position may see."""
    extra = batch.input_ids.new_zeros(len(batch), more)
    ids = torch.cat([batch.input_ids, extra], dim=1)
    return replace(batch, input_ids=ids, labels=torch.cat([batch.labels, extra + IGNORE], dim=1))


def _worst(found: Sequence[Signature], expected: Sequence[Signature]) -> float:
    """The largest difference of a row, as a share of the expected row's norm."""
    worst = torch.zeros(())
    for one, other in zip(found, expected, strict=True):
        for key, block in one.items():
            norm = other[key].double().norm(dim=1).clamp_min(1e-30)
            error = (block.double() - other[key].double()).norm(dim=1) / norm
            worst = torch.maximum(worst.to(error), error.max())
    return float(worst)


def _share(flags: Any) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
