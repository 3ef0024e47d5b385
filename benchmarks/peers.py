"""This project beside others on the same rows: seconds, peak memory, bytes kept, and average precision.

    python benchmarks/peers.py [--model DIR] [--data PATH] [--queries FILE] [--rows N] [--bergson PYTHON] [--rounds N]

Each is a whole process that starts, loads the model and reads all rows; the rounds take turns:

* `python attribute.py`, with layer choice, ranking, token scores and report page
* bergson's `build`, of the rows and of the queries (projected gradients of all linear layers, ranked by their cosine)
* a loop over single samples, as the paper describes the method: a forward pass over the prompt, then forward and
  backward with the gradients of all parameters; ranked by the cosine of the concatenated signatures

bergson is not a dependency: ``--bergson`` names the Python of an environment that has it, and without it this row is
left out. Average precision is that of the whole ranking, averaged over the queries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torchmetrics.functional.retrieval import retrieval_average_precision
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from datamodules.instructions import InstructionData

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
MAX_LENGTH, LAYER = 1024, 4  # bergson cuts at the size of a batch, the model ends there


class Measured(NamedTuple):
    """A whole process, or several one after another."""

    seconds: float
    peak: int  # bytes, of the largest process
    kept: int  # bytes on the disk
    precision: float


def project(folder: Path, options: argparse.Namespace) -> Measured:
    """`python attribute.py`, as a user would run it."""
    command = [sys.executable, str(ROOT / "attribute.py"), "datamodule=instructions", f"model.path={options.model}"]
    command += [f"datamodule.{side}={folder.parent / side}.jsonl" for side in ("train", "queries")]
    command += [f"datamodule.max_length={MAX_LENGTH}", "trainer.accelerator=cpu", f"out={folder}"]
    seconds, peak = run(command)
    found = json.loads((folder / "metrics.json").read_text())["overall"]["average_precision"]
    return Measured(seconds, peak, size(folder / "store"), found)


def bergson(folder: Path, options: argparse.Namespace) -> Measured:
    """`bergson build` of both sides; its random projection has 16 x 16 numbers for each linear layer."""
    program = "from bergson.__main__ import main; main()"
    seconds, peak, gradients = 0.0, 0, []
    for side in ("train", "queries"):
        command = [options.bergson, "-c", program, "build", f"{folder / side}", "--model", str(options.model)]
        command += ["--dataset", f"{folder.parent / side}.jsonl", "--prompt_column", "prompts"]
        command += ["--completion_column", "response", "--projection_dim", "16", "--precision", "fp32"]
        command += ["--truncation", "true", "--token_batch_size", str(options.bergson_tokens)]
        spent, most = run(command)
        seconds, peak = seconds + spent, max(peak, most)
        rows = json.loads((folder / side / "info.json").read_text())["num_items"]
        gradients.append(np.fromfile(folder / side / "gradients.bin", np.float32).reshape(rows, -1))
    train, queries = (torch.from_numpy(side) for side in gradients)
    return Measured(seconds, peak, size(folder), precision(train, queries, folder.parent))


def one_sample_loop(folder: Path, options: argparse.Namespace) -> Measured:
    """The published loop, in a process of its own."""
    folder.mkdir()
    seconds, peak = run([sys.executable, __file__, "--loop", str(folder), "--model", str(options.model)])
    train, queries = (torch.from_numpy(np.load(folder / f"{side}.npy")) for side in ("train", "queries"))
    return Measured(seconds, peak, size(folder), precision(train, queries, folder.parent))


def loop(folder: Path, path: str) -> None:
    """Saves the signatures (n 2D) of both sides, one sample at a time."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for side in ("train", "queries"):
        signatures = []
        for line in (folder.parent / f"{side}.jsonl").read_text().splitlines():
            row = json.loads(line)
            messages = [{"role": "user", "content": row["prompts"]}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            messages.append({"role": "assistant", "content": row["response"]})
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
            tokens = tokenizer(text, add_special_tokens=False).input_ids[:MAX_LENGTH]
            input_ids = torch.tensor([tokens])
            labels = input_ids.clone()
            labels[:, :start] = -100
            with torch.no_grad():
                states = model(input_ids=input_ids[:, :start], output_hidden_states=True).hidden_states[LAYER]
            output = model(input_ids=input_ids, labels=labels, output_hidden_states=True)
            output.hidden_states[LAYER].retain_grad()
            output.loss.backward()
            signatures.append(torch.cat([states[0, -1], output.hidden_states[LAYER].grad[0, start - 1]]).numpy())
            model.zero_grad()
        np.save(folder / f"{side}.npy", np.stack(signatures))


def precision(train: torch.Tensor, queries: torch.Tensor, data: Path) -> float:
    """The mean average precision of the cosines of rows (N D) with queries (Q D)."""
    train, queries = (torch.nn.functional.normalize(side.double(), dim=1) for side in (train, queries))
    labels, asked = (
        [json.loads(line)["label"] for line in (data / f"{side}.jsonl").read_text().splitlines()]
        for side in ("train", "queries")
    )
    found = []
    for scores, label in zip(queries @ train.T, asked, strict=True):
        ranks = scores.argsort().argsort().float() + 1  # torchmetrics drops scores that are not positive
        relevant = torch.tensor([other == label for other in labels])
        found.append(float(retrieval_average_precision(ranks, relevant)))
    return sum(found) / len(found)


def run(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of a process; its output is shown if it fails."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            output.seek(0)
            sys.exit(output.read().decode(errors="replace")[-3000:])
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_rows(folder: Path, options: argparse.Namespace) -> None:
    """Both sides as JSONL with the columns that all of them read."""
    source = InstructionData(train=str(options.data), queries=str(options.queries))
    for side, name in (("train", "train"), ("query", "queries")):
        rows = source.source(side)
        with (folder / f"{name}.jsonl").open("w") as file:
            count = min(len(rows), options.rows)
            for sample in (rows[i * len(rows) // count] for i in range(count)):
                row = {"prompts": sample.messages[0]["content"], "response": sample.response, "label": sample.label}
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "alpaca-backdoor-5m")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "backdoor")
    parser.add_argument("--queries", type=Path, default=SHARED / "data" / "backdoor_queries.jsonl")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each side at most, evenly spaced")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median is printed")
    parser.add_argument("--bergson", default=sys.executable, help="Python of an environment that has bergson")
    parser.add_argument(
        "--bergson-tokens", type=int, default=1024, help="tokens of a batch, at most the model's length"
    )
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        loop(options.loop, str(options.model))
        return
    peers: dict[str, Callable[[Path, argparse.Namespace], Measured]] = {"this project": project}
    if subprocess.run([options.bergson, "-c", "import bergson"], capture_output=True).returncode:
        print(f"bergson is left out: {options.bergson} cannot import it; give --bergson=PYTHON.")
    else:
        peers["bergson build"] = bergson
    peers["one sample at a time"] = one_sample_loop
    measured: dict[str, list[Measured]] = {name: [] for name in peers}
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            write_rows(Path(scratch), options)
            for name, peer in peers.items():
                measured[name].append(peer(Path(scratch) / f"{name.replace(' ', '-')}-{turn}", options))
    print(f"{'':24s}{'seconds':>9s}{'peak MiB':>10s}{'kept MB':>9s}{'average precision':>19s}")
    for name, rounds in measured.items():
        seconds, peak, kept, found = (median(values) for values in zip(*rounds, strict=True))
        print(f"{name:24s}{seconds:9.1f}{peak / 2**20:10.0f}{kept / 1e6:9.2f}{found:19.3f}")


if __name__ == "__main__":
    main()
