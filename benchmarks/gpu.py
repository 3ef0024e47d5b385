"""Speed and memory of the extraction on a GPU, for Llama shapes with random weights in bfloat16.

    python benchmarks/gpu.py [--shapes 1b 8b] [--lengths 256 1024] [--lora no yes] [--seconds N]
    python benchmarks/gpu.py --tiny          a small shape on the CPU, to check that the benchmark itself runs

For each shape, length and adapter, at half of the depth:

* (a) this project: `AttributionModule.predict_step`, as a run calls it
* (b) a minimal hand-written loop
* (c) a loop over single samples with parameter gradients (of the adapter, or all)
* (d) the forward pass alone, without the output layer

Prints for each: samples per second, the share of the GPU's matrix product rate that its passes use (the rate is
measured here, on a large bfloat16 product), and peak memory. Weights and text are random, since their values do not
affect the speed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.extraction import forward_alone, minimal_loop, one_sample_loop
from extractors.sites.residual_stream import ResidualStream
from rept.model.freezing import freeze
from rept.signatures.module import AttributionModule
from rept.types import IGNORE, Batch
from rept.utils.library_logging import quiet

SHAPES: dict[str, dict[str, Any]] = {  # of Llama 3.2 1B and Llama 3.1 8B
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = {"tiny": 512, "1b": 128256, "8b": 128256}
KEY_VALUE_HEADS = {"tiny": 2, "1b": 8, "8b": 8}
TOKENS = {"cpu": 1024, "cuda": 16384}  # of a batch


@dataclass(frozen=True)
class Case:
    shape: str
    length: int
    lora: bool
    device: torch.device


def make_model(case: Case) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    more = {"vocab_size": VOCABULARY[case.shape], "num_key_value_heads": KEY_VALUE_HEADS[case.shape]}
    config = LlamaConfig(**SHAPES[case.shape], **more, tie_word_embeddings=case.shape == "1b")
    torch.manual_seed(0)
    with case.device:  # created on its device and in its dtype: 8B parameters in float32 would not fit everywhere
        torch.set_default_dtype(torch.bfloat16)
        model: Any = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    if case.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    return freeze(model)


def make_batches(case: Case, count: int) -> list[Batch]:
    """Texts of full length; the second half of each is the response."""
    rows = max(1, TOKENS[case.device.type] // case.length)
    vocabulary = VOCABULARY[case.shape]
    batches = []
    for number in range(count):
        ids = torch.randint(vocabulary, (rows, case.length), generator=torch.Generator().manual_seed(number))
        labels = ids.clone()
        labels[:, : case.length // 2] = IGNORE
        batch = Batch(
            input_ids=ids,
            labels=labels,
            prompt_end=torch.full((rows,), case.length // 2 - 1),
            length=torch.full((rows,), case.length),
            row=torch.arange(rows),
            cut=torch.zeros(rows, dtype=torch.bool),
            side="train",
            text=(("", ""),) * rows,
        )
        batches.append(batch.to(case.device))
    return batches


def one_sample(model: nn.Module, batches: Sequence[Batch], layer: int) -> None:
    """The one-sample loop of benchmarks/extraction.py; with an adapter, gradients of its parameters only."""
    adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    if not adapter:
        one_sample_loop(model, batches, layer)
        return
    for parameter in adapter:
        parameter.requires_grad_(True)
    for batch in batches:
        for i in range(len(batch)):
            model(input_ids=batch.input_ids[i : i + 1], labels=batch.labels[i : i + 1]).loss.backward()
            model.zero_grad()
    model.requires_grad_(False)


def matrix_rate(device: torch.device) -> float:
    """Multiplications and additions per second in a large bfloat16 matrix product."""
    size = 8192 if device.type == "cuda" else 512
    x, y = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: x @ y, device, 1.0)
    return 2 * size**3 / seconds


def timed(work: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Seconds of one call, averaged over at least ``at_least`` seconds of calls; the first call is not counted."""
    work()
    wait(device)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < at_least or not calls:
        work()
        wait(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(model: Any, length: int, passes: float) -> float:
    """Multiplications and additions for one sample: ``passes`` times the weights of the blocks, without attention."""
    weights = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    return 2 * weights * length * passes


def measure(case: Case, rate: float, seconds: float) -> None:
    model = make_model(case)
    base = model.get_base_model() if case.lora else model
    layer = SHAPES[case.shape]["num_hidden_layers"] // 2
    module = AttributionModule(model, ResidualStream(), [layer])
    batches = make_batches(case, 1)
    few = [batches[0].select(range(min(4, len(batches[0]))))]
    # Passes over the weights of the blocks. Forward: 1. Backward for hidden states alone: 1, here over half the depth.
    # Backward with all weight gradients: 2. The one-sample loop runs the prompt (0.5) first.
    paths: dict[str, tuple[Callable[[], object], list[Batch], float]] = {
        "(a) this project": (lambda: module.predict_step(batches[0]), batches, 1.5),
        "(b) minimal loop": (lambda: minimal_loop(base, batches, layer), batches, 1.5),
        "(c) one sample at a time": (lambda: one_sample(model, few, layer), few, 2.0 if case.lora else 3.5),
        "(d) forward alone": (lambda: forward_alone(base, batches), batches, 1.0),
    }
    speed = {}
    for name, (work, batch, passes) in paths.items():
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            speed[name] = len(batch[0]) / timed(work, case.device, seconds)
        except torch.cuda.OutOfMemoryError:
            print(row(case, name, "does not fit", "", "", ""))
            model.zero_grad()
            model.requires_grad_(False)
            continue
        share = speed[name] * operations(model, case.length, passes) / rate
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if case.device.type == "cuda" else "-"
        speedup = f"{speed['(a) this project'] / speed[name]:.2f} x"
        print(row(case, name, f"{speed[name]:.1f}", f"{share:.0%}", peak, speedup), flush=True)


def row(case: Case, *cells: str) -> str:
    return f"| {case.shape}{' LoRA' if case.lora else ''} | {case.length} | {' | '.join(cells)} |"


def main() -> None:
    options = _options()
    quiet()
    if not options.tiny and not torch.cuda.is_available():
        print("Expected a GPU, but found none. Use --tiny to check on the CPU that the benchmark runs.")
        return
    device = torch.device("cpu" if options.tiny else "cuda")
    rate = matrix_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {name}: {rate / 1e12:.3g} TFLOP/s in bfloat16, torch {torch.__version__}\n")
    print("| shape | tokens | path | samples per second | share of that rate | peak memory | speedup of (a) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shape in ["tiny"] if options.tiny else options.shapes:
        for length in [32] if options.tiny else options.lengths:
            for lora in options.lora:
                measure(Case(shape, length, lora == "yes", device), rate, 0.2 if options.tiny else options.seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["1b", "8b"], default=["1b", "8b"], help="model shapes")
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024], help="lengths of the texts, in tokens")
    parser.add_argument("--lora", nargs="+", choices=["no", "yes"], default=["no", "yes"], help="with an adapter?")
    parser.add_argument("--seconds", type=float, default=5.0, help="minimum duration of each measurement")
    parser.add_argument("--tiny", action="store_true", help="a small shape on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
