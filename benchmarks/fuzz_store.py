"""Reads 10,000 damaged stores: each must give exactly what was written or be refused with a reason, and never hang.

    python benchmarks/fuzz_store.py [--times N] [--seed N]

Each time, one file of a fresh copy is changed (a bit, a byte, several bytes, its length, its name, its content for
that of another file, or its existence), and the whole store is read. In every second copy, the index and the list of
digests are removed first and the store is finished again, as in a resumed run. Prints how often each kind of change was
refused, had no effect on what was read, was *silently different*, or raised another error. A read that takes more than
ten seconds ends the benchmark with a traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from rept.errors import UsageError
from rept.store.reader import AttributionStore
from rept.store.writer import ShardWriter
from rept.types import Key, Side

KEYS = [Key("residual_stream", 2, "representation"), Key("residual_stream", 2, "gradient")]
SIDES: tuple[Side, Side] = ("train", "query")
ROWS, WIDTH, LIMIT = 24, 4, 10  # LIMIT in seconds


def make(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for side in SIDES:
        for rank in (0, 1):
            writer = ShardWriter(folder, side, fingerprint="c0ffee", shard_rows=6, rank=rank)
            for start in range(rank * 6, ROWS, 12):
                block = {key: torch.randn(6, WIDTH, generator=generator) for key in KEYS}
                writer.append(torch.arange(start, start + 6), torch.zeros(6), block)
            writer.close()
        AttributionStore.finish(folder, side, ROWS)


def read(folder: Path) -> bytes:
    """Everything that a reader sees, independent of the order of blocks."""
    seen: list[bytes] = []
    for side in SIDES:
        store = AttributionStore(folder, side)
        seen += [store.status.tobytes(), str(store.keys).encode(), store.fingerprint.encode()]
        seen += [values.numpy().tobytes() for values in store.read(range(store.rows), store.keys).values()]
        for block in sorted(store.blocks(store.keys), key=lambda block: int(block.row[0])):
            seen += [block.row.numpy().tobytes(), *(values.numpy().tobytes() for values in block.fields.values())]
    return b"".join(seen)


def flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])


def overwrite(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    length = min(rng.randint(1, 64), len(data) - start)
    data[start : start + length] = rng.choice([bytes(length), rng.randbytes(length)])


def move(data: bytearray, rng: random.Random) -> None:
    source, target, length = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 256)
    piece = data[source : source + length]
    data[target : target + len(piece)] = piece


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def lengthen(data: bytearray, rng: random.Random) -> None:
    data += rng.choice([bytes, rng.randbytes])(rng.randint(1, 600))


def remove_bytes(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 16)]


def within(change: Callable[[bytearray, random.Random], None]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        change(data, rng)
        path.write_bytes(data)

    return mutate


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


def exchange(path: Path, rng: random.Random) -> None:
    """Replaces the content by that of another file of the store."""
    others = [other for other in path.parents[1].rglob("*") if other.is_file() and other != path]
    path.write_bytes(rng.choice(others).read_bytes())


def rename(path: Path, rng: random.Random) -> None:
    letters = list(path.name)
    letters[rng.randrange(len(letters))] = rng.choice("0123456789abcdefr-.h5")
    path.rename(path.with_name("".join(letters)))


def duplicate(path: Path, rng: random.Random) -> None:
    """Adds a second copy of a shard under another number."""
    if path.parent.name == "shards":
        shutil.copy(path, path.with_name(path.name.replace("-00000", f"-0000{rng.randint(1, 9)}")))


INSIDE = (flip_bit, set_byte, overwrite, move, cut, lengthen, remove_bytes)
CHANGES = {change.__name__: within(change) for change in INSIDE}
CHANGES |= {change.__name__: change for change in (delete, exchange, rename, duplicate)}


def finish_again(folder: Path) -> None:
    (folder / "digests.json").unlink(missing_ok=True)
    for side in SIDES:
        (folder / side / "index.h5").unlink(missing_ok=True)
        AttributionStore.finish(folder, side, ROWS)


def attempt(folder: Path, expected: bytes, resumed: bool) -> str:
    faulthandler.dump_traceback_later(LIMIT, exit=True)  # works even if HDF5 hangs, which no signal handler interrupts
    try:
        if resumed:
            finish_again(folder)
        return "no effect" if read(folder) == expected else "SILENTLY DIFFERENT"
    except UsageError:
        return "refused"
    except Exception as error:
        return f"OTHER ERROR {type(error).__name__}: {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10_000, help="damaged stores that are read")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        whole, folder = Path(scratch) / "whole", Path(scratch) / "store"
        make(whole)
        expected = read(whole)
        files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        for number in range(arguments.times):
            shutil.copytree(whole, folder)
            name = rng.choice(sorted(CHANGES))
            CHANGES[name](folder / rng.choice(files), rng)
            outcomes[name, attempt(folder, expected, resumed=number % 2 == 1)] += 1
            shutil.rmtree(folder)
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{name:14s}{outcome:20s}{count:8,d}")
    bad = sum(count for (_, outcome), count in outcomes.items() if outcome not in ("refused", "no effect"))
    print(f"{arguments.times:,} stores: {bad} silently different or with another error, 0 hung")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
