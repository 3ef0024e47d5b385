"""One shard: its precision, its bytes, and what is refused."""

import os
import shutil
import time
from pathlib import Path

import h5py
import pytest
import torch

from rept.errors import UsageError
from rept.store import shards
from rept.store.reader import AttributionStore
from rept.store.shards import DamagedStore, ShardName, read_shard
from rept.utils.digests import content_digest
from rept.utils.tensors import unit_rows
from tests.helpers.stores import files, first_shard, make, signatures, write

ROWS = 30


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "store", signatures(ROWS), world=2, lost={5, 17})
    return tmp_path / "store"


@pytest.mark.parametrize("scale", [1e30, 1.0, 1e-4, 1e-25, 1e-36])
def test_half_precision_keeps_rows_of_any_norm(scale):
    block = torch.randn(5, 64) * scale
    unit, norm = unit_rows(block, "float16")
    error = (torch.from_numpy(unit).double() * torch.from_numpy(norm).double()[:, None] - block).norm(dim=1)
    assert (error / block.double().norm(dim=1)).max() < 5e-4


def test_zero_rows_have_norm_zero():
    unit, norm = unit_rows(torch.zeros(2, 8), "float16")
    assert not unit.any() and not norm.any()


def test_values_that_are_not_finite_are_refused():
    block = torch.ones(3, 8)
    block[1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        unit_rows(block, "float16")


def test_equal_rows_give_equal_files_at_any_time(tmp_path):
    make(tmp_path / "a", signatures(ROWS), world=2)
    time.sleep(1.1)  # HDF5 would keep times in seconds
    make(tmp_path / "b", signatures(ROWS), world=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_shard_of_the_other_side_is_refused(folder):
    make(folder, signatures(ROWS), side="query")
    shard = shutil.copy(first_shard(folder, "query"), folder / "train" / "shards")
    with pytest.raises(DamagedStore, match="has rows of the query side"):
        read_shard(Path(shard), "train")


@pytest.mark.parametrize("content", [b"", b"mine", bytes(5000)], ids=["empty", "short", "zeros"])
def test_a_file_that_is_not_a_shard_is_refused_even_under_its_own_digest(tmp_path, content):
    path = tmp_path / str(ShardName(0, 0, content_digest(content)))
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match="is not a shard of schema 1"):
        read_shard(path, "train")


def test_a_file_that_cannot_be_read_is_not_reported_as_damaged(folder, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="cannot be read .Permission denied.") as error:
        read_shard(first_shard(folder), "train")
    assert not isinstance(error.value, DamagedStore)


def test_another_schema_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SCHEMA", 2)
        write(tmp_path, signatures(4))
    with pytest.raises(DamagedStore, match="is not a shard of schema 1"):
        AttributionStore.stored_rows(tmp_path, "train")


def test_nothing_in_a_store_is_a_string_or_pickled(folder):
    def check(name, item):
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind in "iuf" and item.dtype.hasobject is False, name

    for path in folder.rglob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(check)


@pytest.mark.parametrize(("settled", "digests"), [(0.0, 1), (3600.0, 2)], ids=["old file", "new file"])
def test_a_digest_is_computed_again_only_if_the_file_may_have_changed(folder, monkeypatch, settled, digests):
    seen = []
    monkeypatch.setattr(shards, "content_digest", lambda data: seen.append(1) or content_digest(data))
    monkeypatch.setattr(shards, "SETTLED", settled)
    monkeypatch.setattr(shards, "_checked", {})
    path = first_shard(folder)
    time.sleep(0.05)  # time stamps have the resolution of the kernel's clock
    read_shard(path, "train")
    read_shard(path, "train")
    assert len(seen) == digests
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps the time of change
    with pytest.raises(DamagedStore, match="is damaged"):
        read_shard(path, "train")
