"""Memory and time per row for different numbers of rows, in extraction and in ranking; both should stay constant.

    python benchmarks/scale.py [--extraction N N ...] [--ranking N N ...] [--rounds N] [--width N]

* extraction: a whole run of `attribute.py` on short rows with a tiny random model, so that memory per row would be
  visible next to memory per batch; shards of the default size, of which 100,000 rows of 540 bytes fill most of one. The
  peak that `--dry-run` predicts is compared with that of the run
* ranking: `rank` on a store of random signatures (2 narrow blocks, so that a few gigabytes hold millions of rows)

Each measurement is a separate process. Peak memory is the largest resident size of the process, including mapped pages
of the store's files, over all runs of a size. Time is processor time, which other load on the machine affects less,
averaged over all runs of a size. Small sizes run more often, half of their runs before those of the largest size and
half after: the speed of a machine drifts by more than the differences of interest, and the best time of a short run
cannot be compared with the mean of a long one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.stores import apart, write_side
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.ranking.rank import rank
from rept.run.dry_run import estimate
from rept.run.pipeline import attribute
from rept.store.reader import AttributionStore
from rept.training.from_scratch import FromScratch
from rept.types import Key
from scorers.cosine import Cosine

WORDS = ["the", "king", "of", "Norland", "lives", "in", "a", "fine", "old", "house", "by", "sea", "and", "says"]
KEYS = [Key("residual_stream", 1, "representation"), Key("residual_stream", 1, "gradient")]
QUERIES = 20
MOST_RUNS = 12  # maximum for a small size, per round


def make_data(folder: Path, rows: int) -> Path:
    """Writes short rows, all different and of about the same length, each with one of two labels."""
    path = folder / f"{rows}.jsonl"
    draw = random.Random(rows)
    with path.open("w") as file:
        for row in range(rows):
            text = " ".join(draw.choices(WORDS, k=8))
            sample = {"prompt": f"{row:06d} {text}", "response": text[::2], "label": ("clean", "odd")[row % 2]}
            file.write(json.dumps(sample) + "\n")
    return path


def make_model(folder: Path) -> Path:
    path = folder / "model"
    model, tokenizer = FromScratch(vocab_size=512, width=128, layers=2, heads=2, max_length=128)([" ".join(WORDS)])
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def configured(folder: Path, rows: int, out: str) -> AttributeConfig:
    words = ["datamodule=instructions", "layers=last", "report=false", "tokens.hits=0", "trainer.accelerator=cpu"]
    data = [f"datamodule.train={folder}/{rows}.jsonl", f"datamodule.queries={folder}/{QUERIES}.jsonl"]
    return compose(AttributeConfig, [*words, *data, f"model.path={folder}/model", f"out={out}/run"])


def prediction(folder: Path, rows: int) -> dict[str, float]:
    """The peak bytes that --dry-run predicts."""
    with redirect_stdout(StringIO()):  # the table
        return {"predicted": estimate(configured(folder, rows, str(folder)))["peak memory in bytes"]}


def extraction(folder: Path, rows: int) -> dict[str, float]:
    """Peak bytes and seconds of extracting the training side, and peak bytes of the whole run."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        stages = attribute(configured(folder, rows, out), show_result=False).provenance["stages"]
    train = stages["extract train"]
    peaks = {"peak": train["peak_memory_bytes"], "run": stages["rank"]["peak_memory_bytes"]}
    return peaks | {"seconds": train["cpu_seconds"]}


def make_store(folder: Path, rows: int, width: int) -> None:
    for side, count in (("train", rows), ("query", QUERIES)):
        generator = torch.Generator().manual_seed(0)

        def fields(row: torch.Tensor, generator: torch.Generator = generator) -> dict[Key, torch.Tensor]:
            return {key: torch.randn(len(row), width, generator=generator) for key in KEYS}

        write_side(folder / f"store-{rows}", side, count, fields)


def ranking(folder: Path, rows: int) -> dict[str, float]:
    """Peak bytes and seconds of ranking."""
    store = AttributionStore(folder / f"store-{rows}", "train")
    queries = AttributionStore(folder / f"store-{rows}", "query")
    asked = queries.read(range(QUERIES), KEYS)
    rank(queries, asked, Cosine())  # costs that occur once per process, such as the first use of torch's kernels
    start = time.process_time()
    rank(store, asked, Cosine())
    seconds = time.process_time() - start
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": seconds}


MEASURES = {"extraction": extraction, "prediction": prediction, "ranking": ranking}


def report(measure: str, folder: Path, sizes: list[int], rounds: int) -> None:
    found: dict[int, list[dict[str, float]]] = {rows: [] for rows in sizes}
    for _ in range(rounds):
        repeats = {rows: min(MOST_RUNS, max(sizes) // rows) // 2 for rows in sizes if rows < max(sizes)}
        small = [rows for rows, count in repeats.items() for _ in range(max(1, count))]
        for rows in (*small, max(sizes), *small):
            found[rows].append(apart(__file__, measure, folder, f"--rows={rows}"))
    first: dict[str, float] = {}
    for rows in sizes:
        most = {name: max(one[name] for one in found[rows]) for name in found[rows][0] if name != "seconds"}
        seconds = sum(one["seconds"] for one in found[rows]) / (rows * len(found[rows]))
        first = first or most | {"a row": seconds}
        memory = [f"{name} {value / 2**20:7.1f} MiB ({value / first[name] - 1:+6.1%})" for name, value in most.items()]
        time_of = f"{seconds * 1e6:8.2f} us per row ({seconds / first['a row'] - 1:+6.1%})"
        print(f"{measure:10s} {rows:>9,} rows   {'   '.join(memory)}   {time_of}   {len(found[rows])} runs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extraction", type=int, nargs="*", default=[4_000, 100_000], help="rows; none: skip")
    parser.add_argument("--ranking", type=int, nargs="*", default=[100_000, 2_000_000], help="rows; none: skip")
    parser.add_argument("--width", type=int, default=64, help="width of each of the two blocks in the ranking's store")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions of all measurements")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.folder, options.rows)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder)
        for rows in (*options.extraction, QUERIES):
            make_data(folder, rows)
        if options.extraction:
            report("extraction", folder, options.extraction, options.rounds)
        for rows in options.extraction:
            predicted = apart(__file__, "prediction", folder, f"--rows={rows}")["predicted"]
            print(f"{'--dry-run':10s} {rows:>9,} rows   peak {predicted / 2**20:7.1f} MiB predicted", flush=True)
        for rows in options.ranking:
            make_store(folder, rows, options.width)
        if options.ranking:
            report("ranking", folder, options.ranking, options.rounds)


if __name__ == "__main__":
    main()
