"""Checks of a user's model, tokenizer and rows: the batched path against the one-sample oracle, and the template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoded
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation import oracle
from rept.model.architecture import Architecture
from rept.model.loading import to_float64
from rept.model.placement import input_device
from rept.signatures.extractor import Extractor, ReadsSites
from rept.signatures.module import underflowed
from rept.types import IGNORE, Batch, Key, PreTrainedModel, Signature

# Of a row's norm, in a sound model: between two paths in the same dtype, and between a dtype and the next wider one.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
_CANCELLATION = 8  # epsilons of the gradient's terms that are not counted as an error, see `_slow`
_BATCH = "set model.attn_implementation=eager or model.dtype=float32; failing that datamodule.tokens_per_batch=1"


@dataclass(frozen=True)
class Check:
    """One measured error beside its tolerance."""

    name: str
    error: float
    tolerance: float
    remedy: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # a NaN fails


def checks(
    model: PreTrainedModel,
    extractor: Extractor,
    datamodule: AttributionDataModule,
    layers: Sequence[int],
    rows: Sequence[int],
) -> list[Check]:
    """Returns all checks over some training rows.

    Args:
        model: frozen, in evaluation mode, on its device.
        datamodule: its tokenizer attached.
        rows: numbers of training rows that can be attributed.

    Raises:
        UsageError: an extractor that the oracle cannot compute, or no rows.
    """
    if not rows:
        raise UsageError(
            "Expected training rows that can be attributed, but there is none among the first ones: with nothing to "
            "compare, nothing is verified."
        )
    if not isinstance(extractor, ReadsSites) or set(extractor.readings) != set(extractor.fields):
        raise UsageError(
            f"Expected an extractor whose fields are read at sites, but {type(extractor).__name__} computes them "
            "otherwise, so there is nothing to compare them with: verify the sites that it reads, by "
            "extractor=residual_stream, attention_output, mlp_output or several_sites."
        )
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    batches = [batch.to(input_device(model)) for batch in datamodule.batches("train", rows)]
    fast = [extractor(model, batch, layers) for batch in batches]
    slow, rounding = zip(*(_slow(model, extractor, batch, layers) for batch in batches), strict=True)
    padded = [extractor(model, _padded(batch), layers) for batch in batches]
    underflow = sum(int(underflowed(one, len(batch)).sum()) for one, batch in zip(fast, batches, strict=True))
    found = [
        Check("batched path against the one-sample oracle", _worst(fast, slow, rounding), tolerance, _BATCH),
        Check("more padding on the right", _worst(fast, padded, rounding), tolerance, _BATCH),
        Check("rows whose gradient underflows to 0", underflow, 0, "set model.dtype=float32 or bfloat16"),
    ]
    if any(len(batch) > 1 for batch in batches):
        single = [_one_by_one(model, extractor, batch, layers) for batch in batches]
        found.insert(1, Check("batch against single samples", _worst(fast, single, rounding), tolerance, _BATCH))
    if model.dtype in _ROUNDING and not getattr(model, "is_quantized", False):
        exact = _in_wider_dtype(model)
        error = _worst(fast, [extractor(exact, batch, layers) for batch in batches], rounding)
        own, wider = (str(one.dtype).removeprefix("torch.") for one in (model, exact))
        found.append(Check(f"{own} against {wider}", error, _ROUNDING[model.dtype], f"set model.dtype={wider}"))
    return found + template_checks(datamodule, rows)


def template_checks(datamodule: AttributionDataModule, rows: Sequence[int]) -> list[Check]:
    """Returns the shares of rows with two BOS, a misplaced response, or a prompt that is no prefix of the text."""
    encoder = datamodule.encoder.of_last_turns()
    samples = [one for row in rows if isinstance(one := datamodule.sample("train", row), Sample)]
    valid = [(one, encoded) for one in samples if isinstance(encoded := encoder(one), Encoded)]
    two_bos = sum(encoder.leading_bos(sample) > 1 for sample, _ in valid)
    misplaced = sum(_misses_response(*one) for one in valid)
    no_prefix = sum(encoder.prompt(sample) != one.input_ids[: one.prompt_length] for sample, one in valid)
    elsewhere = "harmless for the signature, but generation starts elsewhere: fix the template's generation prompt"
    found = (
        ("rows whose template writes two BOS", two_bos, "remove one from the template"),
        ("rows whose response mask misses the response", misplaced, "fix the chat template's assistant turn"),
        ("rows whose prompt is no prefix of the whole text", no_prefix, elsewhere),
    )
    return [Check(name, count / len(rows), 0, remedy) for name, count, remedy in found]


def _misses_response(sample: Sample, encoded: Encoded) -> bool:
    response = (sample.response or "").strip()
    masked = encoded.text[encoded.pieces[encoded.prompt_length][0] :].strip()
    return not (masked.startswith(response[: len(masked)]) if encoded.cut else response in masked)


def _in_wider_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model in the next wider dtype."""
    copy = deepcopy(model)
    Architecture.of(copy, **Architecture.of(model).named)
    return to_float64(copy) if model.dtype == torch.float32 else copy.float()


def _slow(
    model: PreTrainedModel, extractor: ReadsSites, batch: Batch, layers: Sequence[int]
) -> tuple[Signature, Signature]:
    """The oracle's signature, and by how much rounding may change the norm of each row (B, float32), by key.

    The loss's gradient is that of ``logsumexp(logits) - target logit``. If the model is certain of the response, the
    two terms cancel except for their last digits, whose error is a few epsilons of float32 (in which losses are
    computed, in float64 for such models) times the gradient of the target's logit.
    """
    epsilon = torch.finfo(torch.promote_types(model.dtype, torch.float32)).eps
    rows: defaultdict[Key, list[Tensor]] = defaultdict(list)
    rounding: defaultdict[Key, list[Tensor]] = defaultdict(list)
    for ids, labels in oracle.samples(batch):
        for (name, layer), module in extractor.sites(model, layers).items():
            site = name if name == "residual_stream" else module  # the former independently of `Architecture`
            states = oracle.states(model, ids, labels, layer, site)
            terms = oracle.states(model, ids, labels, layer, site, loss=oracle.mean_target_logit)
            for field, (quantity, position) in extractor.readings.items():
                key, counts = Key(name, layer, field), quantity == "gradient"
                rows[key].append(getattr(oracle.signature(states, labels, position), quantity).float())
                scale = oracle.signature(terms, labels, position).gradient.float().norm()
                rounding[key].append(scale * _CANCELLATION * epsilon * counts)
    slow, allowed = ({key: torch.stack(one) for key, one in blocks.items()} for blocks in (rows, rounding))
    return slow, allowed


def _one_by_one(model: PreTrainedModel, extractor: Extractor, batch: Batch, layers: Sequence[int]) -> Signature:
    parts = [extractor(model, batch.select([i]), layers) for i in range(len(batch))]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _padded(batch: Batch, more: int = 7) -> Batch:
    """The same samples with more padding: token 0, which no real position may depend on."""
    extra = batch.input_ids.new_zeros(len(batch), more)
    ids = torch.cat([batch.input_ids, extra], dim=1)
    return replace(batch, input_ids=ids, labels=torch.cat([batch.labels, extra + IGNORE], dim=1))


def _worst(found: Iterable[Signature], expected: Iterable[Signature], rounding: Iterable[Signature]) -> float:
    """The largest difference of a row that rounding does not explain, as a share of the expected row's norm."""
    worst = torch.zeros((), dtype=torch.float64)
    for one, other, allowed in zip(found, expected, rounding, strict=True):
        for key, block in one.items():
            difference = (block.double() - other[key].double()).norm(dim=1) - allowed[key]
            error = difference.clamp_min(0) / other[key].double().norm(dim=1).clamp_min(1e-30)
            worst = torch.maximum(worst.to(error), error.max())
    return float(worst)
