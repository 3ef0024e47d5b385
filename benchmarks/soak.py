"""Kills runs 200 times, resumes each with the same command, and compares the files with those of undisturbed runs.

    python benchmarks/soak.py [--kills N] [--seed N]

Runs of a small random model, with one process and with two, are killed by SIGKILL at random moments: the first process
(the parent of the others), another rank, or all processes at once. A killed run is started again with the same command
until it finishes. Then its store, results, tokens, queries and measures must equal, byte for byte, those of an
undisturbed run, and its folder must contain no other files.

Prints the kills by victim and by stage, the rows that were computed twice, and the number of differences. The exit code
is 1 if there is a difference, or if a kill cost more than the unfinished shard of each rank.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import forking

from rept.signatures.module import AttributionModule
from rept.training.from_scratch import FromScratch

ROWS, QUERIES, SHARD_ROWS, BATCH_TOKENS, WINDOW = 600, 8, 16, 256, 32
WORDS = "harbour lantern tide keeper story river bread winter garden letter stone bird".split()  # noqa: SIM905
COMPARED = ("results.jsonl", "tokens.jsonl", "queries.jsonl", "metrics.json", "layers.json")
OWN = {"config.yaml", "provenance.json", ".lock", "store", *COMPARED}  # files of a run folder
VICTIMS = {1: ("the only process",), 2: ("rank 0, the parent", "rank 1", "both ranks")}


def make_material(folder: Path) -> None:
    """Makes a Llama of 2 layers and width 32, 600 training rows of which some are set aside, and 8 queries."""
    rng = random.Random(0)

    def row(number: int) -> dict[str, str]:
        prompt, response = (" ".join(rng.choices(WORDS, k=rng.randint(1, most))) for most in (9, 14))
        return {"prompt": prompt, "response": "" if number % 17 == 3 else response, "label": f"label {number % 3}"}

    for name, count in (("train", ROWS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(i + 4)) + "\n" for i in range(count)))
    model, tokenizer = FromScratch(vocab_size=300, width=32, layers=2, heads=2, max_length=128)(WORDS)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def command(folder: Path, out: Path, ranks: int) -> list[str]:
    return [
        "datamodule=instructions",
        f"model.path={folder / 'model'}",
        f"datamodule.train={folder / 'train.jsonl'}",
        f"datamodule.queries={folder / 'queries.jsonl'}",
        "datamodule.max_length=64",
        f"datamodule.tokens_per_batch={BATCH_TOKENS}",
        f"datamodule.window={WINDOW}",
        f"store.shard_rows={SHARD_ROWS}",
        "layers=fixed",
        "layers.layers=[1,2]",
        "top_k=20",
        "tokens.hits=2",
        "report=false",
        "trainer.accelerator=cpu",
        f"trainer.devices={ranks}",
        f"out={out}",
    ]


def count_rows() -> None:
    """Makes every run, each a fork of this process, record the size of each batch in a file next to its run folder."""
    extract = AttributionModule.predict_step

    def predict_step(self: AttributionModule, batch, *rest):
        extraction = extract(self, batch, *rest)
        with open(os.environ["SOAK_ROWS"], "a") as stream:
            stream.write(f"{len(extraction.row)}\n")
        return extraction

    AttributionModule.predict_step = predict_step


def computed(out: Path) -> list[int]:
    """The number of rows of each batch that was computed for a run, in all its attempts."""
    path = out.with_suffix(".rows")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def start(folder: Path, out: Path, ranks: int) -> forking.Forked:
    return forking.start(command(folder, out, ranks), out.with_suffix(".log"), SOAK_ROWS=str(out.with_suffix(".rows")))


def number_of_shards(out: Path) -> int:
    return len(list(out.glob("store/train/shards/r*.h5")))


def state(out: Path) -> str:
    """The stage at which a run was killed, according to the files it left."""
    if (out / "tokens.jsonl").exists():
        return "writing the last files"
    if (out / "store/digests.json").exists() and '"train"' in (out / "store/digests.json").read_text():
        return "ranking and token scores"
    return "extraction" if (out / "store").exists() else "before extraction"


def image(out: Path) -> dict[str, bytes]:
    """The content of all files that must be equal, by name; unexpected files are included."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in (out / "store").rglob("*") if path.is_file()}
    found |= {name: (out / name).read_bytes() for name in COMPARED if (out / name).exists()}
    return found | {path.name: b"should not be here" for path in out.iterdir() if path.name not in OWN}


class Soak:
    """Undisturbed runs for each number of processes, and killed runs that are compared with them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.runs = self.rows_twice = self.differences = self.too_much = 0
        self.expected: dict[int, dict[str, bytes]] = {}
        self.seconds: dict[int, float] = {}
        for ranks in VICTIMS:
            begin = time.monotonic()
            out = folder / f"whole-{ranks}"
            if (code := start(folder, out, ranks).wait()) != 0:
                raise SystemExit(f"an undisturbed run ended with {code}:\n{out.with_suffix('.log').read_text()}")
            self.seconds[ranks] = time.monotonic() - begin
            self.expected[ranks] = image(out)
        for name in COMPARED:  # results do not depend on the number of processes
            self.differences += self.expected[1][name] != self.expected[2][name]

    def run(self, kills: int) -> None:
        """Makes one run after another, each killed a random number of times, until ``kills`` is reached."""
        while sum(self.kills.values()) < kills:
            ranks = 2 - self.runs % 2
            out = self.folder / f"run-{self.runs}"
            before = sum(self.kills.values())
            for _ in range(min(self.rng.randint(2, 6), kills - before)):
                if not self.kill(out, ranks):
                    break
            self.finish(out, ranks, sum(self.kills.values()) - before)

    def kill(self, out: Path, ranks: int) -> bool:
        """Kills a run at a random moment, or at a random moment of its extraction; False if it finished before."""
        run = start(self.folder, out, ranks)
        begin = time.monotonic()
        seconds, shards = self.rng.uniform(0, self.seconds[ranks]), self.rng.randint(1, ROWS // SHARD_ROWS)
        extracting = self.rng.random() < 0.5  # half of the kills wait for a number of shards instead of a time
        while len(others := forking.members(run.pid)) < ranks or not (
            number_of_shards(out) >= shards if extracting else time.monotonic() - begin > seconds
        ):
            if run.poll() is not None:
                return False
            time.sleep(0.002)
        victim = min(VICTIMS[ranks], key=lambda one: (self.kills[one], self.rng.random()))  # the least frequent so far
        if victim == "both ranks":
            os.killpg(run.pid, signal.SIGKILL)
        elif victim == "rank 1":
            os.kill(max(others), signal.SIGKILL)
        else:
            run.kill()
        run.wait()
        forking.wait_until_gone(run.pid)
        self.kills[victim] += 1
        self.states[state(out)] += 1
        return True

    def finish(self, out: Path, ranks: int, kills: int) -> None:
        """Resumes a run until it finishes, and compares it with the undisturbed one."""
        begun = start(self.folder, out, ranks)
        if begun.wait() != 0:
            raise SystemExit(f"{out} ended with {begun.returncode}:\n{out.with_suffix('.log').read_text()[-3000:]}")
        found, expected = image(out), self.expected[ranks]
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        for name in different:
            print(f"{out}: {name} differs", flush=True)
        self.differences += len(different)
        batches = computed(out)
        twice = sum(batches) - ROWS - QUERIES
        self.rows_twice += twice
        self.too_much += twice > kills * ranks * (SHARD_ROWS - 1 + max(batches))  # a shard ends with a batch
        self.runs += 1

    def report(self) -> None:
        kills = sum(self.kills.values())
        lost = self.rows_twice / max(kills, 1)
        for title, counts in (("killed", self.kills), ("at", self.states)):
            for name, count in sorted(counts.items()):
                print(f"{title + ' ' + name:40s}{count:8,d}")
        print(f"{'runs, each resumed until it finished':40s}{self.runs:8,d}")
        print(f"{'rows computed twice':40s}{self.rows_twice:8,d}   ({lost:.1f} per kill; a shard has {SHARD_ROWS})")
        print(f"{'runs that lost more than open shards':40s}{self.too_much:8,d}")
        print(f"{kills} kills: {self.differences} differences")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills until the benchmark ends")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_material(Path(scratch))
        count_rows()
        soak = Soak(Path(scratch), arguments.seed)
        soak.run(arguments.kills)
        soak.report()
    return int(soak.differences + soak.too_much > 0)


if __name__ == "__main__":
    sys.exit(main())
