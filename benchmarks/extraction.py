"""Speed of the extraction in samples per second, for a model on its own training data.

    python benchmarks/extraction.py [--model DIR] [--data PATH] [--rows N] [--layer N] [--rounds N] [--dtype NAME]

The variants take turns in each round, so that other load on the machine affects all of them; the best and the median
round of each are printed:

* (a) this project: batch plan, Lightning, extractor, store
* (b) a minimal hand-written loop over the same batches, which stores nothing
* (c) a loop over single samples, as the paper describes the method
* the forward pass alone, without the output layer: a bound for any method that reads every token
* this project without gradients, which ends each pass at the layer it reads, and a bare forward pass to that layer
* three sites at all layers in one pass, compared with the residual stream at layer 1

At the end a run under a profiler shows what each part of (a) takes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent))
from datamodules.instructions import InstructionData
from extractors.sites.residual_stream import ResidualStream
from extractors.sites.several_sites import SeveralSites
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.model.architecture import Architecture
from rept.results.run_folder import RunFolder
from rept.run import stages
from rept.run.job import Job
from rept.run.prepare import prepare
from rept.signatures.extractor import Extractor
from rept.signatures.module import AttributionModule
from rept.types import IGNORE, Batch

SHARED = Path(__file__).parents[2] / "shared"
FEWER = 4  # the one-sample loop gets every fourth row of each batch, the comparison of sites every fourth batch


def minimal_loop(model: nn.Module, batches: Sequence[Batch], layer: int) -> None:
    """Forward with logits of the response only and backward to one layer, for Llama-like models."""
    kept: list[torch.Tensor] = []

    def cut(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = model.model.layers[layer - 1].register_forward_hook(cut)
    for batch in batches:
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        sample, column = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        logits = model.lm_head(hidden[sample, column]).float()
        losses = cross_entropy(logits, batch.labels[sample, column + 1], reduction="none")
        (losses / torch.bincount(sample)[sample]).sum().backward()
        ends = torch.arange(len(batch)), batch.prompt_end
        torch.cat([kept[-1][ends], kept.pop().grad[ends]], dim=-1)
    handle.remove()


def one_sample_loop(model: nn.Module, batches: Sequence[Batch], layer: int) -> None:
    """For each sample, a forward pass over its prompt, then forward and full backward with parameter gradients."""
    model.requires_grad_(True)
    for batch in batches:
        for i in range(len(batch)):
            ids, labels = (tensor[i : i + 1, : batch.length[i]] for tensor in (batch.input_ids, batch.labels))
            end = int(batch.prompt_end[i])
            with torch.no_grad():
                prompt = model(input_ids=ids[:, : end + 1], output_hidden_states=True).hidden_states[layer]
            output = model(input_ids=ids, labels=labels, output_hidden_states=True)
            output.hidden_states[layer].retain_grad()
            output.loss.backward()
            torch.cat([prompt[0, -1], output.hidden_states[layer].grad[0, end]])
            model.zero_grad()
    model.requires_grad_(False)


def forward_alone(model: nn.Module, batches: Sequence[Batch]) -> None:
    with torch.no_grad():
        for batch in batches:
            model.model(input_ids=batch.input_ids, use_cache=False)


def forward_to(model: nn.Module, batches: Sequence[Batch], layer: int) -> None:
    """The forward pass of the first layers alone, reading the last prompt token; for Llama-like models."""
    blocks, model.model.layers = model.model.layers, model.model.layers[:layer]
    norm, model.model.norm = model.model.norm, nn.Identity()
    with torch.no_grad():
        for batch in batches:
            hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            hidden[torch.arange(len(batch)), batch.prompt_end].float()
    model.model.layers, model.model.norm = blocks, norm


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(options, Path(scratch))
        model, layer, depth = job.model, options.layer, len(Architecture.of(job.model))
        batches = list(job.datamodule.loader("train"))
        some = batches[::FEWER]
        few = [batch.select(range(0, len(batch), FEWER)) for batch in batches]
        run = count()

        def project(extractor: Extractor) -> None:
            job.folder = RunFolder(f"{scratch}/{next(run)}")
            stages.extract(job, AttributionModule(model, extractor, [layer]), "train", mark="benchmark")

        forward = ResidualStream(fields=["representation"])

        three, one = SeveralSites(), ResidualStream()
        _report(
            {
                f"(a) the project, layer {layer}, into the store": (lambda: project(job.extractor), batches),
                f"(b) minimal loop, layer {layer}": (lambda: minimal_loop(model, batches, layer), batches),
                f"(c) one-sample loop, layer {layer}": (lambda: one_sample_loop(model, few, layer), few),
                "forward alone, without output layer": (lambda: forward_alone(model, batches), batches),
                f"(d) the project, layer {layer}, no gradients": (lambda: project(forward), batches),
                f"(e) bare forward pass to layer {layer}": (lambda: forward_to(model, batches, layer), batches),
                "one site, layer 1": (lambda: [one(model, batch, [1]) for batch in some], some),
                f"three sites, layers 1 to {depth}": (
                    lambda: [three(model, batch, range(1, depth + 1)) for batch in some],
                    some,
                ),
            },
            options.rounds,
        )
        shares(lambda: project(job.extractor))


def shares(work: Callable[[], None]) -> None:
    """Prints the share of each part of the project's own run."""
    with cProfile.Profile() as profile:
        work()
    seconds = {
        f"{Path(file).stem}.{function}": total
        for (file, _, function), (_, _, _, total, _) in pstats.Stats(profile).stats.items()
        if file.startswith(str(Path(__file__).parent.parent))
    }
    whole = seconds["stages.extract"]
    parts = {
        "decoder blocks, forward": seconds["hooks.sample_losses"] - seconds["lm_head.compute"],
        "output layer and losses": seconds["lm_head.compute"],
        "backward": seconds["hooks.gradients_of"],
        "reading and tokenizing rows": seconds["datamodule._plan"],
        "shards, index, digests": seconds["writer.append"] + seconds["writer.close"] + seconds["index.write_index"],
    }
    parts["rest (positions, statuses, Lightning)"] = whole - sum(parts.values())
    for name, share in parts.items():
        print(f"{name:<46} {share / whole:6.1%}")


def _job(options: argparse.Namespace, scratch: Path) -> Job:
    """A run on the first rows of the data."""
    source = InstructionData(train=str(options.data)).source("train")
    with (scratch / "rows.jsonl").open("w") as file:
        for row in range(options.rows):
            file.write(json.dumps({"messages": [*source[row].messages, _answer(source[row].response)]}) + "\n")
    data = [f"datamodule.train={scratch}/rows.jsonl", f"datamodule.queries={scratch}/rows.jsonl"]
    model = [f"model.path={options.model}", f"model.dtype={options.dtype}", f"datamodule.max_length={options.cut}"]
    layers = ["layers=fixed", f"layers.layers=[{options.layer}]"]
    words = ["datamodule=instructions", "trainer.accelerator=cpu", f"out={scratch}/run"]
    return prepare(compose(AttributeConfig, [*words, *data, *model, *layers]))


def _answer(response: str | None) -> dict[str, str | None]:
    return {"role": "assistant", "content": response}


def _report(measured: dict[str, tuple[Callable[[], None], Sequence[Batch]]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, (work, _) in measured.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    print(f"{'samples per second':<48} best  median   ({torch.get_num_threads()} threads, {rounds} rounds)")
    for name, (_, batches) in measured.items():
        samples = sum(len(batch) for batch in batches)
        print(f"{name:<46} {samples / min(seconds[name]):6.1f}  {samples / median(seconds[name]):6.1f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SHARED / "models" / "alpaca-backdoor-5m", help="a Llama-like model")
    parser.add_argument("--data", default=SHARED / "data" / "backdoor", help="training data of the model")
    parser.add_argument("--rows", type=int, default=400, help="rows that are extracted, the first of the data")
    parser.add_argument("--layer", type=int, default=4, help="layer of (a), (b) and (c)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each variant runs")
    parser.add_argument("--dtype", default="float32", help="dtype of the model")
    parser.add_argument("--cut", type=int, default=256, help="maximum length of a sample, in tokens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
