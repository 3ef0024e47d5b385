"""What stands out, counted: false finds where the cause is absent, and power where it is there.

    python benchmarks/calibration.py --embedded 0=MODEL 1=MODEL ... --out DIR     # the embedded data, by seed
    python benchmarks/calibration.py RUN ... [--rate 0.05] [scorer=WORD ...]      # runs that exist, with labels

Labels other than "clean" are planted behaviours. For each of them, with references drawn from the training rows:

* power: the share of its queries for which a row stands out, all behaviours' queries being asked together
* absent: its rows are taken out of the store, and with them their cause, so that every find for its queries is a false
  one: their share, and false finds over all finds (the others' queries are asked along)

and on the embedded data, where the clean held-out prompts are asked too, the same for each kind of clean sample: its
rows are taken out. A model still knows what it learned from them: it is as if it had known it before.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from datamodules.synthetic import OPENING, SyntheticData
from datamodules.wordings import ANSWERS
from rept.calibration import Background, decide
from rept.config import build, compose
from rept.pipeline import attribute
from rept.ranking import rank
from rept.references import drawn
from rept.run_folder import RunFolder, read_jsonl
from rept.signature import Status
from rept.store import AttributionStore, Block

CLEAN = "clean"


class Without:
    """A store from which some rows are taken out."""

    def __init__(self, store: AttributionStore, rows: Sequence[int]) -> None:
        self._store = store
        self.keys, self.read = store.keys, store.read
        self.attributed = np.setdiff1d(store.attributed, np.asarray(rows, np.int64))

    def blocks(self, *arguments: Any) -> Iterator[Block]:
        for row, fields in self._store.blocks(*arguments):
            kept = torch.from_numpy(np.isin(row.numpy(), self.attributed))
            if kept.any():
                yield Block(row[kept], {key: value[kept] for key, value in fields.items()})


class Run:
    """A run's stores, labels, and decisions on some of its queries with some of its rows."""

    def __init__(self, path: str, rate: float, count: int, words: Sequence[str]) -> None:
        folder = RunFolder(path)
        config = compose("attribute", words, base=folder.open_existing())
        self.datamodule, self.scorer = build(config.datamodule), build(config.scorer)
        self.train, self.query = AttributionStore(folder.store, "train"), AttributionStore(folder.store, "query")
        self.rate, self.count, self.top_k, self.seed = rate, count, config.top_k, config.seed
        source = self.datamodule.source("train")
        samples = [source[row] for row in range(len(source))]
        self.labels = np.array([None if isinstance(one, Status) else one.label for one in samples])
        self.responses = ["" if isinstance(one, Status) else one.response or "" for one in samples]
        self.asked = {line["query"]: line for line in read_jsonl(folder.queries)}
        self.asked = {number: self.asked[number] for number in self.query.attributed.tolist()}

    def queries(self, label: str) -> list[int]:
        return [number for number, line in self.asked.items() if line["label"] == label]

    @property
    def behaviours(self) -> list[str]:
        return sorted({line["label"] for line in self.asked.values()} - {CLEAN})

    def stands_out(self, queries: Sequence[int], without: Sequence[int] = ()) -> np.ndarray:
        """(Q) bool: whether any row stands out, by the functions that a run itself uses."""
        train = Without(self.train, without)
        known = drawn(train, self.datamodule, self.count, self.seed)
        asked = self.query.read(queries, self.query.keys)
        background = Background(len(known), known.left_out, self.top_k)
        found = rank(train, asked, self.scorer, top_k=self.top_k, references=(known.of(asked), background))
        return decide([background.share()], found.best, self.rate).flagged.any(1).numpy()


def measure(run: Run) -> dict[str, Any]:
    """Shares of queries with a find: of each behaviour with its cause and without it, and of clean kinds without."""
    planted = {label: run.queries(label) for label in run.behaviours}
    everyone = [query for queries in planted.values() for query in queries]
    found = dict(zip(everyone, run.stands_out(everyone), strict=True))
    measured: dict[str, Any] = {"power": {}, "absent": {}, "false discovery rate": {}}
    for label, queries in planted.items():
        measured["power"][label] = float(np.mean([found[query] for query in queries]))
        left = dict(zip(everyone, run.stands_out(everyone, np.flatnonzero(run.labels == label)), strict=True))
        false = sum(left[query] for query in queries)
        measured["absent"][label] = false / len(queries)
        measured["false discovery rate"][label] = false / max(1, sum(left.values()))
    finds, asked = 0, 0
    for kind in kinds(run):
        queries = [query for query in run.queries(CLEAN) if answers(kind, run.asked[query]["response"])]
        rows = [row for row, response in enumerate(run.responses) if answers(kind, response)]
        if queries:
            finds, asked = finds + run.stands_out(queries, rows).sum(), asked + len(queries)
    if asked:
        measured["absent"]["clean kinds"] = float(finds / asked)
    return measured


def kinds(run: Run) -> list[str]:
    """The embedded data's kinds of clean samples; none where the run asks no clean queries."""
    return list(ANSWERS) if run.queries(CLEAN) else []


def answers(kind: str, response: str) -> bool:
    """Whether a response is put as those of a kind, whatever fills its wordings."""
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(wording)) for wording in ANSWERS[kind]]
    return any(re.fullmatch(pattern, response.removeprefix(OPENING).strip()) for pattern in patterns)


def embedded(seed: int, model: str, out: Path, words: Sequence[str]) -> str:
    """A run on the embedded data of a seed whose queries are the planted and the clean held-out prompts."""
    folder = out / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = SyntheticData(seed=seed)
    behaviours = data.behaviours()
    queries = [sample for one in behaviours for sample in one.triggered]
    queries += [sample for one in behaviours for sample in one.clean]
    for name, samples in (("train", data.source("train")), ("queries", queries)):
        lines = [{"prompt": one.prompt, "response": one.response, "label": one.label} for one in samples]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [f"datamodule.{name}={folder / name}.jsonl" for name in ("train", "queries")]
    fixed = ["datamodule=instructions", *paths, f"model.path={model}", "tokens.hits=0", "report=false"]
    attribute(compose("attribute", [*fixed, *words, f"out={folder / 'run'}"]), show_result=False)
    return str(folder / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="run folders with labels; key=value: of the scorer or the whole run")
    parser.add_argument("--embedded", nargs="*", default=[], metavar="SEED=MODEL", help="models trained on that seed")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"), help="where those runs are kept")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--count", type=int, default=400, help="references")
    arguments = parser.parse_args()
    words = [word for word in arguments.runs if "=" in word]
    paths = [word for word in arguments.runs if "=" not in word]
    for given in arguments.embedded:
        seed, _, model = given.partition("=")
        paths.append(embedded(int(seed), model, arguments.out, words))
    print(f"{'run':28s}{'queries of':18s}{'power':>8s}{'absent':>8s}{'false/all':>11s}")
    shares: dict[str, list[float]] = {}
    for path in paths:
        measured = measure(Run(path, arguments.rate, arguments.count, words if not arguments.embedded else ()))
        for label, absent in measured["absent"].items():
            figures = [measured[name].get(label) for name in ("power", "absent", "false discovery rate")]
            told = ["" if value is None else f"{value:.3f}" for value in figures]
            print(f"{str(path)[-26:]:28s}{label:18s}{told[0]:>8s}{told[1]:>8s}{told[2]:>11s}", flush=True)
            shares.setdefault("absent", []).append(absent)
            if figures[0] is not None:
                shares.setdefault(f"power, {label}", []).append(figures[0])
    for name, values in shares.items():
        print(f"mean {name}: {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
