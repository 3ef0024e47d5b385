"""Speed and memory of the ranking: the best 100 of 1,000,000 rows for each of 100 queries, streamed from disk.

    python benchmarks/ranking.py [--rows N] [--folder DIR] [--rounds N] [--quick]

Makes a store of random signatures (2 blocks x 512, float16) around 1,000 centres, as if there were 1,000 kinds of
samples, and then measures, each in a separate process and taking turns:

* `rank` on that store with the memory of the process: with the digests checked, and again (the fastest of three), when
  the process has checked them before
* FAISS IndexFlatIP (extra ``faiss``) on the same vectors, in memory as normalized float32: with its default settings,
  and through BLAS (the fastest of three), which FAISS uses by default for larger searches only
* the matrix product alone, in memory: a bound for any exact float32 method
* one pair at a time, on a slice
* once, the approximate index of `rept.ranking.faiss_index`: building, searching (mapped from disk), size, recall

The hits are compared with those of FAISS, and their scores with float64.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.stores import apart, write_side
from rept.ranking.faiss_index import ApproximateIndex
from rept.ranking.rank import rank
from rept.store.reader import AttributionStore
from rept.types import Key
from scorers.cosine import Cosine

KEYS = [Key("residual_stream", 4, "representation"), Key("residual_stream", 4, "gradient")]
WIDTH, QUERIES, TOP, KINDS = 512, 100, 100, 1000
REPEATS = 3  # searches of one process, of which the fastest counts


def make(folder: Path, rows: int) -> None:
    """Makes a store with two blocks of about equal norm, so that both matter to the score."""
    centres = {key: torch.randn(KINDS, WIDTH, generator=torch.Generator().manual_seed(len(key.field))) for key in KEYS}
    for side, count in (("train", rows), ("query", QUERIES)):
        generator = torch.Generator().manual_seed(len(side))

        def fields(row: torch.Tensor, generator: torch.Generator = generator) -> dict[Key, torch.Tensor]:
            scale = torch.rand(len(row), 1, generator=generator) * 100
            kind = torch.randint(KINDS, (len(row),), generator=generator)
            noise = {key: torch.randn(len(row), WIDTH, generator=generator) for key in KEYS}
            return {key: (centres[key][kind] + noise[key]) * scale for key in KEYS}

        write_side(folder, side, count, fields)


def queries(folder: Path) -> dict[Key, torch.Tensor]:
    return AttributionStore(folder, "query").read(range(QUERIES), KEYS)


def ours(folder: Path) -> dict:
    asked = queries(folder)
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        best = rank(AttributionStore(folder, "train"), asked, Cosine(), top_k=TOP).best
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds[0],
        "again": min(seconds[1:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": best.row.tolist(),
        "scores": best.score.tolist(),
    }


def approximate(folder: Path) -> dict:
    """Builds and searches the approximate index: seconds of both, bytes, and the rows found."""
    asked = queries(folder)
    index = ApproximateIndex(folder / "approximate.faiss", AttributionStore(folder, "train"), Cosine(), KEYS)
    start = time.perf_counter()
    made = index.build(asked, TOP)
    build = time.perf_counter() - start
    start = time.perf_counter()
    rows = index.search(asked, TOP).row.tolist()
    seconds = time.perf_counter() - start
    searched = f"{made.searched_lists} of {made.lists}"
    return {"build": build, "seconds": seconds, "bytes": made.bytes, "searched": searched, "rows": rows}


def vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All rows (N D) and queries (Q D) in memory: the blocks concatenated and normalized."""
    store = AttributionStore(folder, "train")
    train = np.empty((store.rows, WIDTH * len(KEYS)), np.float32)
    for block in store.blocks(KEYS):
        rows = torch.cat([block.fields[key] for key in KEYS], dim=1)
        train[block.row] = torch.nn.functional.normalize(rows, dim=1)
    asked = queries(folder)
    return train, torch.nn.functional.normalize(torch.cat([asked[key] for key in KEYS], dim=1), dim=1).numpy()


def in_memory(folder: Path, quick: bool = False) -> dict:
    """Seconds of FAISS and of the matrix product alone, and FAISS's hits."""
    train, asked = vectors(folder)
    start = time.perf_counter()
    for first in range(0, len(train), 4096):
        torch.from_numpy(train[first : first + 4096]) @ torch.from_numpy(asked).T
    found = {"product": time.perf_counter() - start}
    try:
        import faiss
    except ImportError:
        return found
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    del train
    thresholds = {"blas": 0, "default": faiss.cvar.distance_compute_blas_threshold}
    for name, threshold in list(thresholds.items())[: 1 if quick else 2]:
        faiss.cvar.distance_compute_blas_threshold = threshold
        found[name] = math.inf
        for _ in range(REPEATS if name == "blas" else 1):  # with default settings it takes minutes
            start = time.perf_counter()
            scores, rows = index.search(asked, TOP)
            found[name] = min(found[name], time.perf_counter() - start)
    return found | {"rows": rows.tolist(), "scores": scores.tolist()}


def one_pair_at_a_time(folder: Path, rows: int = 200) -> float:
    """Pairs per second."""
    store = AttributionStore(folder, "train")
    train, asked = store.read(range(rows), KEYS), queries(folder)
    x, y = (torch.cat([side[key] for key in KEYS], dim=1) for side in (train, asked))
    start = time.perf_counter()
    for one in x:
        for other in y:
            torch.nn.functional.cosine_similarity(one, other, dim=0)
    return rows * QUERIES / (time.perf_counter() - start)


def exactness(folder: Path, found: dict, other: dict) -> str:
    """Compares the hits with those of FAISS, and their scores with float64."""
    rows, scores = torch.tensor(found["rows"]), torch.tensor(found["scores"]).double()
    unique, inverse = rows.unique(return_inverse=True)
    stored = AttributionStore(folder, "train").read(unique.numpy(), KEYS)
    x = torch.cat([stored[key] for key in KEYS], dim=1).double()
    y = torch.cat(list(queries(folder).values()), dim=1).double()
    exact = torch.nn.functional.cosine_similarity(x[inverse], y[:, None], dim=-1)
    line = f"largest error of a score, compared with float64: {(exact - scores).abs().max():.1e}"
    if "rows" in other:
        gap = (scores - torch.tensor(other["scores"]).double()).abs().max()
        same = (rows == torch.tensor(other["rows"])).double().mean()
        line += f"; hits at the same rank as in FAISS: {same:.2%}, scores within {gap:.1e}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the store")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best is printed")
    parser.add_argument("--folder", type=Path, help="where the store is kept; by default a temporary one")
    parser.add_argument("--quick", action="store_true", help="skips FAISS with default settings, which takes minutes")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measure: dict[str, Callable[[Path], dict]] = {
        "ours": ours,
        "in_memory": in_memory,
        "quick": lambda folder: in_memory(folder, quick=True),
        "approximate": approximate,
    }
    if arguments.measure:
        print(json.dumps(measure[arguments.measure](arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        make(folder, arguments.rows)
        rounds = [
            (apart(__file__, "ours", folder), apart(__file__, "quick" if arguments.quick else "in_memory", folder))
            for _ in range(arguments.rounds)
        ]
        report(folder, arguments.rows, rounds)
        if find_spec("faiss"):
            report_approximate(rounds[0][0], apart(__file__, "approximate", folder))


def report(folder: Path, rows: int, rounds: list[tuple[dict, dict]]) -> None:
    seconds, again = (min(ours[name] for ours, _ in rounds) for name in ("seconds", "again"))
    peak = max(ours["peak_mib"] for ours, _ in rounds)
    titles = {
        "product": "the product alone, in memory",
        "blas": "FAISS IndexFlatIP, BLAS, in memory",
        "default": "FAISS IndexFlatIP, defaults, in memory",
    }
    others = {title: min(one[name] for _, one in rounds) for name, title in titles.items() if name in rounds[0][1]}
    others["one pair at a time (from a slice)"] = rows * QUERIES / one_pair_at_a_time(folder)
    print(f"{rows:,} rows x {len(KEYS)} blocks x {WIDTH}, {QUERIES} queries, top {TOP}, {os.cpu_count()} cores")
    print(f"{'':44s}{'seconds':>10s}{'our speedup':>13s}{'again':>9s}")
    print(f"{f'ours, from disk (peak {peak:.0f} MiB)':44s}{seconds:10.2f}")
    print(f"{'ours, again: digests checked before':44s}{again:10.2f}")
    for title, other in others.items():
        print(f"{title:44s}{other:10.2f}{other / seconds:11.2f} x{other / again:7.2f} x")
    print(exactness(folder, *rounds[0]))


def report_approximate(exact: dict, found: dict) -> None:
    pairs = zip(exact["rows"], found["rows"], strict=True)
    recall = sum(len(set(a) & set(b)) for a, b in pairs) / (QUERIES * TOP)
    print(
        f"approximate index, from disk: {found['seconds']:.2f} s, digest checked before ({found['searched']} lists); "
        f"recall@{TOP} {recall:.3f}; {found['bytes'] / 1e9:.2f} GB; built in {found['build']:.0f} s"
    )


if __name__ == "__main__":
    main()
