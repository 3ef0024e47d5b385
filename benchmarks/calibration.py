"""Calibration on data with known causes: power for queries with a cause, false finds for queries without one.

    python benchmarks/calibration.py runs/suite-hard [--methods rept rept-paper]     # a finished suite, all its seeds
    python benchmarks/calibration.py RUN ... [--rate 0.05] [key=value ...]           # existing runs with labels
    python benchmarks/calibration.py --embedded 0=MODEL 1=MODEL ... --out DIR        # the embedded data, by seed

Labels other than "clean" are planted behaviours. All their queries are calibrated together. Printed for each label:

* found: the share of its queries for which a row stands out. This is power, or the rate of false finds for a label that
  no row has, as in the suite's absent cases.
* taken out: the same after the rows of the label are removed from the store, so that every find for its queries is
  false. The model still knows what it learned from these rows, as if it had learned it before.
* culprit rows: of the rows that stand out for its queries, the share that has the label

References are rows drawn from the training data. On a suite, ``--references clean`` adds the clean held-out prompts
with the model's answers, which are first traced into OUT; on other runs, the queries of ``calibration.references`` are
added if it is given. On the embedded data, clean held-out prompts are queries too, without the rows of their kind.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.stores import Without
from datamodules.synthetic import OPENING, SyntheticData
from datamodules.toy.wordings import ANSWERS
from rept.calibration.decision import decide
from rept.calibration.references import load_references
from rept.calibration.statistics import StatisticsCollector
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.ranking.rank import rank
from rept.ranking.scorer import Scorer
from rept.results.run_folder import RunFolder
from rept.run.pipeline import attribute
from rept.store.reader import AttributionStore
from rept.types import Status
from rept.utils.json_files import read_jsonl

CLEAN = "clean"
CLEAN_KINDS = "clean kinds"  # queries whose kind of rows is removed, so that every find is false


class Run:
    """A run: its stores, its labels, and the calibration of some of its queries on some of its rows."""

    def __init__(self, path: str | Path, words: Sequence[str]) -> None:
        self.folder = RunFolder(path)
        self.config = compose(AttributeConfig, words, base=self.folder.open_existing())
        self.datamodule = build(self.config.datamodule, AttributionDataModule)
        self.scorer = build(self.config.scorer, Scorer)
        store = self.folder.store
        self.train, self.query = AttributionStore(store, "train"), AttributionStore(store, "query")
        source = self.datamodule.source("train")
        samples = [source[row] for row in range(len(source))]
        self.labels = np.array([None if isinstance(one, Status) else one.label for one in samples])
        self.responses = ["" if isinstance(one, Status) else one.response or "" for one in samples]
        self.asked = {line["query"]: line for line in read_jsonl(self.folder.queries)}
        self.asked = {number: self.asked[number] for number in self.query.attributed.tolist()}

    def queries(self, label: str) -> list[int]:
        return [number for number, line in self.asked.items() if line["label"] == label]

    @property
    def behaviours(self) -> list[str]:
        return list(dict.fromkeys(line["label"] for line in self.asked.values() if line["label"] != CLEAN))

    def flagged(self, queries: Sequence[int], without: Sequence[int] = ()) -> list[np.ndarray]:
        """The rows that stand out for each query, computed by the functions that a run uses."""
        train = Without(self.train, without)
        known = load_references(self.config.calibration, self.config.seed, self.folder, train, self.datamodule)
        asked = self.query.read(queries, self.query.keys)
        read = {key: block for key, block in asked.items() if key.field in self.scorer.needs}
        watch = StatisticsCollector(train, read, known, self.config.top_k)
        hits = rank(train, asked, self.scorer, top_k=self.config.top_k, watch=watch).best
        flagged = decide([watch.collected()], hits, self.config.calibration.rate, self.config.top_k).flagged
        return [row[flag].numpy() for row, flag in zip(hits.row, flagged, strict=True)]


@dataclass
class Finds:
    """Counts of queries and rows for one label."""

    asked: int = 0  # queries
    found: int = 0  # queries for which a row stands out
    taken_out: int | None = None  # queries for which one still does without the label's rows; None: there are none
    rows: int = 0  # rows that stand out, over all queries
    culprits: int = 0  # those of them that have the label

    def add(self, other: Finds) -> None:
        self.asked, self.found = self.asked + other.asked, self.found + other.found
        self.rows, self.culprits = self.rows + other.rows, self.culprits + other.culprits
        if other.taken_out is not None:
            self.taken_out = (self.taken_out or 0) + other.taken_out

    @property
    def cells(self) -> str:
        taken_out = "" if self.taken_out is None else f"{self.taken_out / self.asked:.3f}"
        precision = f"{self.culprits / self.rows:.3f}" if self.rows and self.taken_out is not None else ""
        return f"{self.asked:>7}{self.found / self.asked:>8.3f}{taken_out:>11s}{precision:>14s}"


def measure(run: Run) -> dict[str, Finds]:
    """The counts of each behaviour, and on the embedded data of clean prompts without the rows of their kind."""
    planted = {label: run.queries(label) for label in run.behaviours}
    everyone = [query for queries in planted.values() for query in queries]
    rows = dict(zip(everyone, run.flagged(everyone), strict=True))
    measured = {}
    for label, queries in planted.items():
        own = np.concatenate([rows[query] for query in queries])
        finds = Finds(len(queries), sum(len(rows[query]) > 0 for query in queries), None, len(own))
        finds.culprits = int((run.labels[own] == label).sum())
        if (run.labels == label).any():
            left = dict(zip(everyone, run.flagged(everyone, np.flatnonzero(run.labels == label)), strict=True))
            finds.taken_out = sum(len(left[query]) > 0 for query in queries)
        measured[label] = finds
    clean = Finds(taken_out=0)
    for kind in kinds(run):
        queries = [query for query in run.queries(CLEAN) if answers(kind, run.asked[query]["response"])]
        kin = [row for row, response in enumerate(run.responses) if answers(kind, response)]
        if queries:
            found = sum(len(rows) > 0 for rows in run.flagged(queries, kin))
            clean.add(Finds(len(queries), found, found))
    return measured | ({CLEAN_KINDS: clean} if clean.asked else {})


def show(title: str, measured: dict[str, Finds]) -> None:
    """Prints a line for each label, and the false finds among all."""
    print(f"\n{title}\n{'label':16s}{'queries':>7s}{'found':>8s}{'taken out':>11s}{'culprit rows':>14s}")
    for label, finds in measured.items():
        print(f"{label:16s}{finds.cells}")
    absent = [finds for finds in measured.values() if finds.taken_out is None]
    present = [finds for label, finds in measured.items() if finds.taken_out is not None and label != CLEAN_KINDS]
    for name, some in (("present causes", present), ("absent causes", absent)):
        if some:
            print(f"{name}: {sum(one.found for one in some)} of {sum(one.asked for one in some)} found")
    out, asked = sum(one.taken_out for one in present), sum(one.asked for one in present)
    print(f"taken out: {out} of {asked} found")
    if absent:
        false, found = sum(one.found for one in absent), sum(one.found for one in (*absent, *present))
        print(f"false discovery rate, all queries together: {false / max(1, found):.3f}", flush=True)


def of_suite(folder: Path, methods: Sequence[str], kinds: Sequence[str], out: Path, words: Sequence[str]) -> None:
    """Prints one table over all seeds for each method and kind of references."""
    for method in methods:
        for kind in kinds:
            measured: dict[str, Finds] = {}
            for run in sorted(folder.glob(f"seed-*/{method}")):
                known = [f"calibration.references={clean_queries(run, out)}"] if kind == "clean" else []
                for label, finds in measure(Run(run, [*known, *words])).items():
                    measured.setdefault(label.partition(":")[0], Finds()).add(finds)
            show(f"{folder}, {method}, {kind} references", measured)


def clean_queries(run: Path, out: Path) -> Path:
    """Makes a run like this one on the clean held-out prompts, with the model's answers; returns its folder."""
    path = out / run.parent.name / run.name
    config = compose(AttributeConfig, ["datamodule.asked=clean", f"out={path}"], base=RunFolder(run).open_existing())
    attribute(config, show_result=False)
    return path


def kinds(run: Run) -> list[str]:
    """The kinds of clean samples in the embedded data; none if the run has no clean queries."""
    return list(ANSWERS) if run.queries(CLEAN) else []


def answers(kind: str, response: str) -> bool:
    """Whether a response has one of the wordings of a kind."""
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(wording)) for wording in ANSWERS[kind]]
    return any(re.fullmatch(pattern, response.removeprefix(OPENING).strip()) for pattern in patterns)


def embedded(seed: int, model: str, out: Path, words: Sequence[str]) -> str:
    """Makes a run on the embedded data of a seed with the planted and the clean held-out prompts as queries."""
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
    attribute(compose(AttributeConfig, [*fixed, *words, f"out={folder / 'run'}"]), show_result=False)
    return str(folder / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="folders of runs with labels, or of suites; and key=value settings")
    parser.add_argument("--methods", nargs="*", default=["rept", "rept-paper"], help="methods of a suite")
    parser.add_argument("--references", nargs="*", default=["clean", "drawn"], help="for a suite: clean, drawn or both")
    parser.add_argument("--embedded", nargs="*", default=[], metavar="SEED=MODEL", help="models trained on that seed")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"), help="where new runs are kept")
    parser.add_argument("--rate", type=float, default=0.05, help="nominal rate of false finds")
    parser.add_argument("--count", type=int, default=400, help="rows drawn as references")
    arguments = parser.parse_args()
    words = [word for word in arguments.runs if "=" in word]
    settings = [f"calibration.rate={arguments.rate}", f"calibration.count={arguments.count}"]
    paths = [Path(word) for word in arguments.runs if "=" not in word]
    for given in arguments.embedded:
        seed, _, model = given.partition("=")
        path = embedded(int(seed), model, arguments.out, words)
        show(str(path), measure(Run(path, settings)))
    for path in paths:
        if any(path.glob("seed-*")):
            of_suite(path, arguments.methods, arguments.references, arguments.out, [*settings, *words])
        else:
            show(str(path), measure(Run(path, [*settings, *words])))


if __name__ == "__main__":
    main()
