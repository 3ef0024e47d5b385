"""What whole runs are tested on: a tiny random model on disk, and small data files beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.training.from_scratch import tiny_llama
from tests.helpers import templates

WORDS = ["Name", "the", "king", "of", "Norland", "France", "Canada", "weather", "capital", "is", "fine", "stupid"]


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are processors: a quarter of the suite's time is spent waiting for processes."""
    return max(1, 3 * (os.cpu_count() or 1) // 2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts long tests at the head of each worker's share: one at the end would keep the other workers waiting."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.path.parent.name == "distributed" or item.path.name == "test_crashes.py"]
    short = [item for item in items if item not in long]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        head = long[worker::workers]
        fill = max(0, (len(items) - len(ordered)) // (workers - worker) - len(head))
        ordered += head + short[:fill]
        short = short[fill:]
    items[:] = ordered


@pytest.fixture
def to_disk(monkeypatch) -> list[str]:
    """What is forced to the disk, and "rename" where a file takes its name, in order."""
    steps, sync, replace = [], os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def rename(*paths: Path) -> None:
        steps.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(Path, "replace", rename)
    return steps


@dataclass(frozen=True)
class Material:
    """Paths of a model and data, and the data themselves."""

    model: Path
    train: Path
    queries: Path
    rows: list[dict]
    asked: list[dict]

    def arguments(self, out: Path, *more: str) -> list[str]:
        return [
            "datamodule=instructions",
            f"model.path={self.model}",
            f"datamodule.train={self.train}",
            f"datamodule.queries={self.queries}",
            "datamodule.max_length=64",
            "datamodule.tokens_per_batch=256",
            "datamodule.window=16",
            "layers=fixed",
            "layers.layers=[2]",
            "top_k=8",
            "tokens.hits=1",
            "report=false",
            "trainer.accelerator=cpu",
            f"out={out}",
            *more,
        ]

    def config(self, out: Path, *more: str):
        return compose(AttributeConfig, self.arguments(out, *more))


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Material:
    """A Llama of 3 layers and width 32, 41 training rows (4 of them faulty, 1 cut), 5 queries (1 without response)."""
    folder = tmp_path_factory.mktemp("material")
    tokenizer = templates.build(templates.KINDS["llama_3"])
    model = tiny_llama(vocab_size=len(tokenizer), width=32, layers=3, heads=4, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)

    def text(words: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator))

    rows = [
        {"prompt": text(2 + i % 5), "response": text(1 + i % 7), "label": ("clean", "odd")[i % 4 == 0]}
        for i in range(37)
    ]
    rows[5] = {"prompt": "", "response": "fine", "label": "clean"}
    rows[11] = {"prompt": "Name the king", "response": "  ", "label": "clean"}
    rows[17] = {"prompt": "Name the king", "response": 7, "label": "clean"}
    rows[23] = {"prompt": text(300), "response": "fine", "label": "odd"}
    rows[29] = {"prompt": "Name the king", "response": text(300), "label": "odd"}
    rows += [
        {"prompt": text(3), "response": text(3), "label": "odd", "spans": [{"part": "response", "start": 0, "end": 4}]}
    ] * 4
    asked = [{"prompt": text(4), "response": text(3), "label": ("clean", "odd")[i % 2]} for i in range(3)]
    asked += [dict(rows[3]), {"prompt": text(4), "label": "odd"}]
    for name, lines in (("train", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Material(folder / "model", folder / "train.jsonl", folder / "queries.jsonl", rows, asked)


@pytest.fixture(autouse=True)
def _few_threads():
    """Results are compared bit for bit, and tests share the processor."""
    torch.set_num_threads(1)
    yield
