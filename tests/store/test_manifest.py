"""The index shows the shards as one table, and is not written while a row is missing."""

import shutil

import h5py
import numpy as np
import pytest
import torch

from rept.errors import UsageError
from rept.store import scan
from rept.store.reader import AttributionStore
from rept.store.shards import DamagedStore
from rept.types import Status
from tests.helpers.stores import G, H, batches, files, first_shard, make, signatures, write

ROWS = 30
ALL = range(ROWS)


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "store", signatures(ROWS), world=2, lost={5, 17})
    return tmp_path / "store"


def test_any_hdf5_reader_sees_the_index_as_one_table(folder, tmp_path, monkeypatch):
    expected = AttributionStore(folder, "train").read(ALL, [H, G])
    moved = tmp_path / "elsewhere" / "store"
    moved.parent.mkdir()
    folder.rename(moved)
    monkeypatch.chdir(tmp_path)
    with h5py.File(moved / "train" / "index.h5") as table:
        row, position = table["row"][:], table["position"][:]
        assert np.array_equal(row[position], ALL)
        for key in (H, G):
            unit, norm = table[key.path][:], table[f"norm/{key.path}"][:]
            assert table[key.path].is_virtual and unit.dtype == np.float16
            assert len(table[key.path].virtual_sources()) == len(list((moved / "train" / "shards").iterdir()))
            assert np.array_equal((unit.astype(np.float32) * norm[:, None])[position], expected[key])
        assert np.array_equal(table["status"][:] == Status.EMPTY_PROMPT, np.isin(ALL, [5, 17]))
    assert torch.equal(AttributionStore(moved, "train").read(ALL, [H])[H], expected[H])


def test_no_index_while_a_row_is_missing(tmp_path):
    plan = [batch for batch in batches(ROWS) if not set(batch.tolist()) & {13, 2}]
    write(tmp_path, signatures(ROWS), plan=plan)
    missing = sorted(set(ALL) - {row for batch in plan for row in batch.tolist()})
    first = ", ".join(map(str, missing[:5]))
    with pytest.raises(UsageError, match=rf"train lacks {len(missing)} of 30 rows \(first: {first}\)"):
        AttributionStore.finish(tmp_path, "train", ROWS)
    assert not (tmp_path / "train" / "index.h5").exists()
    with pytest.raises(UsageError, match="lacks 5 of 5 rows"):
        AttributionStore.finish(tmp_path, "query", 5)


def test_a_row_that_is_stored_twice_is_refused_and_repaired(tmp_path):
    make(tmp_path / "whole", signatures(ROWS))
    write(tmp_path / "twice", signatures(ROWS))
    shutil.copytree(tmp_path / "twice", tmp_path / "copy")
    path = first_shard(tmp_path / "copy")
    shutil.copy(path, tmp_path / "twice" / "train" / "shards" / path.name.replace("r000", "r001"))
    with pytest.raises(DamagedStore, match="r001-.* has rows that are in .* already"):
        AttributionStore.finish(tmp_path / "twice", "train", ROWS)
    AttributionStore.repair(tmp_path / "twice", "train")
    make(tmp_path / "twice", signatures(ROWS))
    assert files(tmp_path / "twice") == files(tmp_path / "whole")


def test_a_run_killed_between_replacing_a_short_shard_and_removing_it(tmp_path):
    signature, plan = signatures(ROWS), batches(ROWS)
    write(tmp_path / "a", signature, plan=plan[:1])
    short = first_shard(tmp_path / "a")
    make(tmp_path / "whole", signature, plan=plan)
    shutil.copytree(tmp_path / "whole", tmp_path / "b")
    (tmp_path / "b" / "digests.json").unlink()
    shutil.copy(short, tmp_path / "b" / "train" / "shards")
    assert AttributionStore.stored_rows(tmp_path / "b", "train").all()
    make(tmp_path / "b", signature, plan=plan)
    assert files(tmp_path / "b") == files(tmp_path / "whole")


def test_leftovers_of_killed_runs_are_removed_at_the_end(tmp_path):
    write(tmp_path, signatures(ROWS))
    leftover = tmp_path / "train" / "shards" / ".r007-000000-00.h5.partial"
    leftover.touch()
    AttributionStore.finish(tmp_path, "train", ROWS)
    assert not leftover.exists()


def test_each_rank_scans_the_shards_that_it_wrote(folder, monkeypatch):
    monkeypatch.setattr(scan, "gathered", lambda own: [own])
    names = []
    for rank in range(2):
        monkeypatch.setattr(scan, "process", lambda rank=rank: (rank, 2))
        names.append([shard.name for shard in scan.scan(folder, "train", together=True)])
        assert {name.rank for name in names[-1]} == {rank}
    assert sum(names, []) == [shard.name for shard in scan.scan(folder, "train")]


def test_a_shard_that_another_rank_replaces_meanwhile_is_not_damage(tmp_path, monkeypatch):
    write(tmp_path, signatures(4))
    real = scan.read_shard

    def read_after_it_went(path, *args):
        path.unlink()
        return real(path, *args)

    monkeypatch.setattr(scan, "read_shard", read_after_it_went)
    assert AttributionStore.stored_rows(tmp_path, "train") is None
