"""The store keeps rounded signatures; a fault at any step of writing costs at most the open shard."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from rept.errors import UsageError
from rept.store import writer
from rept.store.reader import AttributionStore
from rept.store.shards import ShardName, read_shard
from rept.store.writer import ShardWriter, StoreWriter
from rept.types import Extraction, Status
from rept.utils.digests import content_digest
from tests.helpers.stores import FINGERPRINT, G, H, batches, files, make, signatures, write

ROWS = 30


def shard_files(folder, side="train"):
    return sorted((folder / side / "shards").glob("*.h5"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_is_a_unit_row_in_the_stores_dtype_and_a_norm(tmp_path, dtype):
    signature = signatures(ROWS)
    store = make(tmp_path, signature, dtype=dtype)
    for path in shard_files(tmp_path):
        shard = read_shard(path, "train")
        assert all(shard.columns[key.path].dtype == dtype for key in shard.keys)
    stored = store.read(range(ROWS), [H, G])
    for key, block in signature.items():
        norm = block.double().norm(dim=1, keepdim=True)
        rounded = (block.double() / norm).numpy().astype(dtype).astype(np.float32) * norm.float().numpy()
        assert np.array_equal(stored[key].numpy(), rounded)


def test_signatures_of_16_bits_are_accepted(tmp_path):
    block = torch.randn(4, 8, dtype=torch.bfloat16)
    store = make(tmp_path, {H: block}, dtype="float32")
    torch.testing.assert_close(store.read(range(4), [H])[H], block.float())


def test_shards_end_where_batches_end(tmp_path):
    plan = batches(ROWS)
    write(tmp_path, signatures(ROWS), plan=plan, shard_rows=5)
    ends = set(np.cumsum([len(batch) for batch in plan]))
    sizes = [len(read_shard(path, "train")) for path in shard_files(tmp_path)]
    assert set(np.cumsum(sizes)) <= ends
    assert all(size >= 5 for size in sizes[:-1]) and max(sizes) < 5 + 4


def test_by_default_a_shard_is_full_at_a_number_of_bytes(tmp_path, monkeypatch):
    row_bytes = 2 * (8 * 2 + 4) + 8 + 1  # two blocks with their norms, row number and status
    monkeypatch.setattr(writer, "SHARD_BYTES", 8 * row_bytes)
    write(tmp_path, signatures(ROWS), shard_rows=None)  # in batches of 4, 4, 2, 4, 4, 2, ...
    shards = [read_shard(path, "train") for path in shard_files(tmp_path)]
    assert [len(shard) for shard in shards] == [8, 10, 10, 2]
    assert {shard.row_bytes for shard in shards} == {row_bytes}


def test_rows_without_a_signature_count_as_wide_as_those_with_one(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 8 * 49)
    plan = batches(ROWS)
    write(tmp_path, signatures(ROWS), shard_rows=None, lost=set(plan[1].tolist()), plan=plan)
    assert len(read_shard(shard_files(tmp_path)[0], "train")) == 8


def test_bytes_of_a_sample(tmp_path):
    rows, width = 2000, 128
    make(tmp_path, signatures(rows, width=width), shard_rows=500)
    taken = sum(len(content) for content in files(tmp_path).values())
    assert taken < rows * (4 * width + 64)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stopped", ["killed", "closed"])
def test_a_resumed_run_leaves_the_same_files(tmp_path, world, stopped):
    signature, plan = signatures(ROWS), batches(ROWS)
    make(tmp_path / "whole", signature, world=world, plan=plan)
    for stop in range(len(plan)):
        folder = tmp_path / str(stop)
        open_writers = [ShardWriter(folder, "train", FINGERPRINT, shard_rows=8, rank=rank) for rank in range(world)]
        for number, batch in enumerate(plan[:stop]):
            block = {key: values[batch] for key, values in signature.items()}
            open_writers[number % world].append(batch, torch.zeros(len(batch)), block)
        if stopped == "closed":
            for one in open_writers:
                one.close()
        make(folder, signature, world=world, plan=plan)
        assert files(folder) == files(tmp_path / "whole"), stop


def test_a_run_that_dies_after_every_batch_still_finishes(tmp_path):
    signature, plan = signatures(ROWS), batches(ROWS)
    make(tmp_path / "whole", signature, plan=plan)
    for _ in plan:  # one batch a run
        done = AttributionStore.stored_rows(tmp_path / "runs", "train", ROWS)
        batch = next(batch for batch in plan if done is None or not done[batch].all())
        one = ShardWriter(tmp_path / "runs", "train", FINGERPRINT, shard_rows=8)
        one.append(batch, torch.zeros(len(batch)), {key: values[batch] for key, values in signature.items()})
        one.close()
    AttributionStore.finish(tmp_path / "runs", "train", ROWS)
    assert files(tmp_path / "runs") == files(tmp_path / "whole")


class Killed(BaseException):
    """The process ends here."""


class Faults:
    """Counts the steps of writing, and fails at one of them."""

    def __init__(self, monkeypatch, fail_at, fault):
        self.steps, self.fail_at, self.fault = [], fail_at, fault
        real_open = Path.open

        def open_(path, mode="r", *args, **kwargs):
            stream = real_open(path, mode, *args, **kwargs)
            return Stream(stream, self.step) if "w" in mode else stream

        monkeypatch.setattr(Path, "open", open_)
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (writer, "content_digest"),
        ):
            monkeypatch.setattr(owner, name, self.before(name, getattr(owner, name)))

    def before(self, name, real):
        def step(*args, **kwargs):
            self.step(name)
            return real(*args, **kwargs)

        return step

    def step(self, name):
        self.steps.append(name)
        dead = isinstance(self.fault, Killed) and len(self.steps) > self.fail_at  # it cleans up nothing
        if len(self.steps) == self.fail_at or dead:
            raise self.fault


class Stream:
    """A file whose writing is three steps: half of it, the rest, flush."""

    def __init__(self, stream, step):
        self.stream, self.step = stream, step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def fileno(self):
        return self.stream.fileno()

    def write(self, data):
        self.step("write")
        self.stream.write(data[: len(data) // 2])
        self.step("write")
        self.stream.write(data[len(data) // 2 :])

    def flush(self):
        self.step("flush")
        self.stream.flush()


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fault", [Killed(), DISK_FULL], ids=["killed", "disk full"])
def test_a_fault_at_any_step_of_writing(tmp_path, fault):
    signature, plan = signatures(14), batches(14)
    make(tmp_path / "whole", signature, plan=plan)
    whole = files(tmp_path / "whole")
    seen = set()
    for fail_at in range(1, 1000):
        folder = tmp_path / str(fail_at)
        write(folder, signature, plan=plan[:1])  # so that the next run replaces a short shard
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, fail_at, fault)
            try:
                make(folder, signature, plan=plan)
            except Killed:
                pass
            except UsageError as error:
                assert "No space left" in str(error) and "\n" not in str(error)
            except OSError:
                assert faults.steps[-1] in ("content_digest", "unlink")  # nothing is written there, so no disk fills
        for name, content in files(folder).items():
            if not name.endswith(".partial") and "shards" in name:
                assert content_digest(content) in name, "incomplete"
            elif name == "digests.json":
                assert content == whole[name], "the listing comes last"
        make(folder, signature, plan=plan)
        assert files(folder) == whole, faults.steps
        if len(faults.steps) < fail_at:
            break
        seen.add(faults.steps[fail_at - 1])
    assert seen >= {"mkdir", "content_digest", "write", "flush", "fsync", "replace", "unlink"}


def test_a_full_disk_leaves_no_partial_file(tmp_path):
    """A real limit on the size of files, in another process."""
    code = f"""
        import resource
        from pathlib import Path
        from rept.errors import UsageError
        from tests.helpers.stores import signatures, write
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        try:
            write(Path({str(tmp_path)!r}), signatures({ROWS}), shard_rows=25)
        except UsageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1 and not done.stderr
    assert files(tmp_path) == {}
    make(tmp_path, signatures(ROWS), shard_rows=25)


def test_after_a_full_disk_closing_does_not_try_again(tmp_path, monkeypatch):
    one = ShardWriter(tmp_path, "train", FINGERPRINT, shard_rows=2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="No space left on device; free disk space .* same command again"):
        one.append(torch.arange(4), torch.zeros(4), signatures(4))
    one.close()
    assert files(tmp_path) == {}


def test_a_rank_removes_only_its_own_leftovers(tmp_path):
    folder = tmp_path / "train" / "shards"
    folder.mkdir(parents=True)
    own, other, longer = (folder / f".{ShardName(rank, 0, '0' * 32)}.partial" for rank in (1, 2, 1000))
    for path in (own, other, longer):
        path.touch()
    ShardWriter(tmp_path, "train", FINGERPRINT, rank=1)
    assert not own.exists() and other.exists() and longer.exists()


def test_another_runs_shard_is_not_continued(tmp_path):
    write(tmp_path, signatures(3))
    with pytest.raises(UsageError, match="was made by another run"):
        ShardWriter(tmp_path, "train", "another")


def test_rows_and_settings_that_do_not_fit_are_refused(tmp_path):
    one = ShardWriter(tmp_path, "train", FINGERPRINT)
    with pytest.raises(ValueError, match="status and blocks of 3 rows"):
        one.append(torch.arange(3), torch.zeros(3), signatures(2))
    with pytest.raises(ValueError, match="signature of each row that is attributed"):
        one.append(torch.arange(3), torch.zeros(3), {})
    with pytest.raises(UsageError, match="float16 or float32, but got 'int8'"):
        ShardWriter(tmp_path, "train", FINGERPRINT, dtype="int8")
    with pytest.raises(UsageError, match="shard_rows to be at least 1, but got 0"):
        ShardWriter(tmp_path, "train", FINGERPRINT, shard_rows=0)
    one.append(torch.arange(3), torch.zeros(3), signatures(3))
    with pytest.raises(ValueError, match="all signatures to have the blocks"):
        one.append(torch.arange(3, 6), torch.zeros(3), signatures(3, keys=[H]))
    one.close()
    assert AttributionStore.stored_rows(tmp_path, "train").tolist() == [True] * 3


LEAF_SPEC = ".isinstance.treespec, LeafSpec.. is deprecated"  # Lightning's own use of torch


class Reader(LightningModule):
    """Returns row numbers as signatures; every tenth row is set aside."""

    def __init__(self, side="train", raise_at=None):
        super().__init__()
        self.side, self.raise_at = side, raise_at

    def predict_step(self, batch, batch_idx):
        if batch_idx == self.raise_at:
            raise RuntimeError("the model broke")
        status = torch.where(batch % 10 == 9, int(Status.EMPTY_RESPONSE), int(Status.ATTRIBUTED))
        block = (batch[:, None] + torch.ones(8)) * (status == 0)[:, None]
        return Extraction(batch, status.to(torch.uint8), self.side, {H: block} if block.any() else {})


def predict(folder, module, rows=20):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StoreWriter(folder, FINGERPRINT)],
    )
    return trainer.predict(module, DataLoader(torch.arange(rows), batch_size=3), return_predictions=False)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning", f"ignore:{LEAF_SPEC}:FutureWarning")
def test_the_callback_writes_every_batch(tmp_path):
    predict(tmp_path, Reader())
    predict(tmp_path, Reader(side="query"))
    for side in ("train", "query"):
        AttributionStore.finish(tmp_path, side, 20)
        store = AttributionStore(tmp_path, side)
        assert store.status.tolist() == [Status.EMPTY_RESPONSE if row % 10 == 9 else 0 for row in range(20)]
        expected = torch.where(torch.arange(20) % 10 == 9, 0.0, torch.arange(1.0, 21.0))
        torch.testing.assert_close(store.read(range(20), [H])[H].mean(1), expected, rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning", f"ignore:{LEAF_SPEC}:FutureWarning")
def test_the_callback_keeps_whole_batches_when_the_model_raises(tmp_path):
    with pytest.raises(RuntimeError, match="the model broke"):
        predict(tmp_path, Reader(raise_at=3))
    assert AttributionStore.stored_rows(tmp_path, "train").tolist() == [True] * 9
