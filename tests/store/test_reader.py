"""A store returns what was written, reports damage and never uses it, and is repaired by recomputing rows."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rept.errors import UsageError
from rept.store.manifest import Listing
from rept.store.reader import AttributionStore
from rept.store.shards import DamagedStore, ShardName, read_shard
from rept.types import Key, Status
from tests.helpers.commands import ROOT, environment
from tests.helpers.stores import FINGERPRINT, G, H, batches, files, first_shard, make, signatures, write

ROWS = 30
ALL = range(ROWS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished store of two ranks, shared by the tests of this file: not changed by any."""
    folder = tmp_path_factory.mktemp("store")
    make(folder, signatures(ROWS), world=2, lost={5, 17})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def read_all(folder):
    """Everything that can be read of the train side."""
    store = AttributionStore(folder, "train")
    blocks = [(block.row.clone(), block.fields) for block in store.blocks([H, G], rows_per_block=5)]
    return store.status.copy(), blocks, store.read(ALL, [H, G])


def test_the_store_returns_what_was_written(made):
    store = AttributionStore(made, "train")
    assert store.keys == [G, H] and store.rows == ROWS and store.fingerprint == FINGERPRINT
    assert [row for row in ALL if store.status[row] == Status.EMPTY_PROMPT] == [5, 17]
    assert store.attributed.tolist() == [row for row in ALL if row not in (5, 17)]
    for most in (1, 7, 27, 28, 100):
        step = -(-28 // most)  # of 28 rows
        assert store.evenly_spaced(most).tolist() == store.attributed.tolist()[::step]
    for key, block in signatures(ROWS).items():
        block[[5, 17]] = 0
        error = (store.read(ALL, [key])[key] - block).norm(dim=1)
        assert (error <= 5e-4 * block.norm(dim=1)).all()


def test_a_sample_costs_its_two_blocks_and_less_than_64_bytes(tmp_path):
    width, rows = 32, 4000
    make(tmp_path, signatures(rows, width=width), shard_rows=None)
    assert sum(len(content) for content in files(tmp_path).values()) < rows * (2 * 2 * width + 64)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("rows_per_block", [1, 3, 1000])
def test_blocks_are_the_attributed_rows_once_each(made, rows_per_block, reuse):
    store = AttributionStore(made, "train")
    stored = store.read(ALL, [H, G])
    seen = []
    for block in store.blocks([H, G], rows_per_block, reuse=reuse):
        assert 0 < len(block.row) <= rows_per_block
        for key in (H, G):
            assert torch.equal(block.fields[key], stored[key][block.row])
        seen += block.row.tolist()
    assert sorted(seen) == store.attributed.tolist()


def test_parts_of_the_blocks_are_a_partition(made):
    store = AttributionStore(made, "train")
    parts = [[row for block in store.blocks([H], part=(i, 3)) for row in block.row.tolist()] for i in range(3)]
    assert all(parts) and sorted(sum(parts, [])) == store.attributed.tolist()


def test_rows_are_read_in_the_given_order(made):
    store = AttributionStore(made, "train")
    stored = store.read(ALL, [H])[H]
    rows = [29, 3, 3, 0, 5]
    assert torch.equal(store.read(rows, [H])[H], stored[rows])
    assert store.read([], [H])[H].shape == (0, 8)
    with pytest.raises(IndexError, match="from 0 to 29, but got -1 to 4"):
        store.read([4, -1], [H])
    with pytest.raises(UsageError, match=r"has \(residual_stream/2/gradient, .* but got mlp_output/2/gradient"):
        store.read([0], [Key("mlp_output", 2, "gradient")])


def test_mean_norms(tmp_path):
    store = make(tmp_path, signatures(ROWS), lost={5, 17}, cut={1, 2, 3, 20})
    norm = store.read(store.attributed, [G])[G].norm(dim=1)
    assert store.mean_norm(G) == pytest.approx(norm.mean().item(), rel=1e-3)


def test_rows_whose_response_was_cut_are_attributed(tmp_path):
    store = make(tmp_path, signatures(ROWS), lost={5}, cut={1, 2, 3, 20})
    assert store.attributed.tolist() == [row for row in ALL if row != 5]
    assert store.attributed_in_order.tolist() == [row for block in store.blocks([H]) for row in block.row.tolist()]
    assert set(store.attributed_in_order) == set(store.attributed)
    assert store.read([1, 20], [H])[H].any(1).all()


def test_layers_are_ordered_by_number(tmp_path):
    keys = [Key("mlp_output", layer, "representation") for layer in (10, 2, 1)]
    store = make(tmp_path, signatures(4, keys))
    assert [key.layer for key in store.keys] == [1, 2, 10]


def test_a_shard_without_any_attributed_row(tmp_path):
    lost = {row for batch in batches(ROWS)[2:4] for row in batch.tolist()}
    store = make(tmp_path, signatures(ROWS), lost=lost, shard_rows=4)
    assert min(len(read_shard(path, "train").keys) for path in (tmp_path / "train" / "shards").iterdir()) == 0
    assert store.attributed.tolist() == [row for row in ALL if row not in lost]
    assert not store.read(sorted(lost), [H])[H].any()
    with h5py.File(tmp_path / "train" / "index.h5") as index:
        assert not index[H.path][:][index["position"][:][sorted(lost)]].any()


def test_a_store_of_which_no_row_could_be_attributed(tmp_path):
    with pytest.raises(UsageError, match="a row that could be attributed, but got: 30 empty prompt"):
        make(tmp_path, signatures(ROWS), lost=set(ALL))


def test_a_store_that_is_not_finished(tmp_path):
    write(tmp_path, signatures(ROWS))
    assert not AttributionStore.finished(tmp_path, "train")
    with pytest.raises(UsageError, match="not finished; give the same command again"):
        AttributionStore(tmp_path, "train")


def test_stored_rows_are_those_in_whole_shards(tmp_path):
    assert AttributionStore.stored_rows(tmp_path, "train") is None
    plan = batches(ROWS)
    write(tmp_path, signatures(ROWS), plan=plan[:3])
    stored = AttributionStore.stored_rows(tmp_path, "train", ROWS, FINGERPRINT)
    assert np.flatnonzero(stored).tolist() == sorted(torch.cat(plan[:3]).tolist())
    with pytest.raises(DamagedStore, match="was made by another run"):
        AttributionStore.stored_rows(tmp_path, "train", ROWS, "another")
    with pytest.raises(DamagedStore, match="has rows .* but the data have 2"):
        AttributionStore.stored_rows(tmp_path, "train", 2)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_any_file_is_reported_by_its_name(made, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped") / "store"
    shutil.copytree(made, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())), "file")
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path.write_bytes(content)
    with pytest.raises(DamagedStore) as error:
        read_all(folder)
    assert str(path) in str(error.value) and "store.repair=true" in str(error.value)
    shutil.rmtree(folder.parent)


def test_no_damaged_file_reaches_hdf5(folder, monkeypatch):
    for path in folder.rglob("*.h5"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(h5py, "File", None)  # to open anything would raise TypeError
    with pytest.raises(DamagedStore):
        AttributionStore(folder, "train")
    with pytest.raises(DamagedStore):
        read_shard(first_shard(folder), "train")
    with pytest.raises(DamagedStore):
        AttributionStore.stored_rows(folder, "train")


def damages(folder):
    """Ways to damage the store: (what the error must say, a function that does it)."""
    shard, index, listing = first_shard(folder), folder / "train" / "index.h5", folder / "digests.json"

    def cut(path, length):
        return lambda: path.write_bytes(path.read_bytes()[:length])

    def rename():
        name = ShardName.parse(shard)
        shard.rename(shard.with_name(str(name._replace(number=77))))

    def swap_listing():
        content = json.loads(listing.read_text())
        content["sides"]["train"]["rows"] = 29
        listing.write_text(json.dumps(content, indent=1) + "\n")

    other = folder.parent / "other"
    return {
        "cut": ("damaged", cut(shard, 1000)),
        "empty": ("damaged", cut(shard, 0)),
        "missing": ("is missing", shard.unlink),
        "renamed": ("is missing", rename),
        "foreign": ("does not belong", lambda: shutil.copy(first_shard(make_other(other)), shard.parent)),
        "file": ("does not belong", lambda: (shard.parent / "mine.h5").write_bytes(b"mine")),
        "index missing": ("is missing", index.unlink),
        "index cut": ("damaged", cut(index, 100)),
        "listing cut": ("damaged", cut(listing, 100)),
        "listing empty": ("damaged", cut(listing, 0)),
        "listing changed": ("damaged", swap_listing),
        "listing not text": ("damaged", lambda: listing.write_bytes(b"\xff\xfe[")),
        "listing a list": ("damaged", lambda: listing.write_text("[]")),
        "listing nested": ("damaged", lambda: listing.write_text("[" * 100_000)),
    }


def make_other(folder):
    make(folder, signatures(ROWS, seed=3), fingerprint="another")
    return folder


DAMAGES = [
    "cut", "empty", "missing", "renamed", "foreign", "file", "index missing", "index cut", "listing cut",
    "listing empty", "listing changed", "listing not text", "listing a list", "listing nested",
]  # fmt: skip


def test_a_shard_of_another_size_is_reported_when_the_store_is_opened(folder):
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes() + b"?")
    with pytest.raises(DamagedStore, match=f"{shard.name} is damaged .* bytes instead of"):
        AttributionStore(folder, "train")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_reported_in_one_sentence_and_repaired(made, folder, damage):
    message, do_damage = damages(folder)[damage]
    do_damage()
    with pytest.raises(DamagedStore, match=message) as error:
        read_all(folder)
    assert "\n" not in str(error.value) and str(error.value).endswith("to recompute its rows.")
    AttributionStore.repair(folder, "train", FINGERPRINT)
    make(folder, signatures(ROWS), world=2, lost={5, 17})
    assert files(folder) == files(made)


def test_only_damaged_shards_are_recomputed(folder):
    shard = first_shard(folder)
    rows = read_shard(shard, "train").row.tolist()
    shard.write_bytes(b"damaged")
    assert AttributionStore.repair(folder, "train") == [shard]
    stored = AttributionStore.stored_rows(folder, "train", ROWS)
    assert sorted(rows) == np.flatnonzero(~stored).tolist()


def test_repairing_one_side_leaves_the_other(folder):
    make(folder, signatures(6, seed=1), side="query")
    before = files(folder / "query")
    first_shard(folder).unlink()
    AttributionStore.repair(folder, "train")
    assert AttributionStore.finished(folder, "query") and not AttributionStore.finished(folder, "train")
    assert files(folder / "query") == before


def test_a_shard_that_goes_missing_while_it_is_read(folder):
    store = AttributionStore(folder, "train")
    first_shard(folder).unlink()
    with pytest.raises(DamagedStore, match="is missing"):
        list(store.blocks([H]))


def test_one_shard_is_mapped_at_a_time(tmp_path):
    store = make(tmp_path, signatures(200), shard_rows=4)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux to see what is mapped")
    most = 0
    for _ in store.blocks([H]):
        most = max(most, maps.read_text().count(str(tmp_path)))
    AttributionStore.stored_rows(tmp_path, "train")
    assert 1 <= most <= 2
    assert maps.read_text().count(str(tmp_path)) <= 2


def test_a_read_only_folder_can_be_read(folder, monkeypatch):
    expected = read_all(folder)[2]
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    real_open = os.open

    def read_only(path, flags, *args, **kwargs):
        assert not flags & (os.O_WRONLY | os.O_RDWR), path  # root may write in spite of the mode
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    try:
        assert torch.equal(read_all(folder)[2][H], expected[H])
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


def test_ten_can_read_while_one_writes(folder):
    expected = read_all(folder)[2]
    faults = []

    def read():
        try:
            for _ in range(5):
                assert torch.equal(read_all(folder)[2][G], expected[G])
        except BaseException as fault:
            faults.append(fault)

    readers = [threading.Thread(target=read) for _ in range(10)]
    for reader in readers:
        reader.start()
    make(folder, signatures(50, seed=4), side="query", shard_rows=3)
    for reader in readers:
        reader.join()
    assert not faults
    assert Listing.read(folder).sides.keys() == {"train", "query"}


def test_ten_processes_can_read_while_one_writes(folder):
    """Forks of a process that has done nothing else yet."""
    code = f"""
        import os
        from pathlib import Path
        from tests.helpers.stores import signatures, make
        from tests.store.test_reader import read_all, G
        import torch
        folder = Path({str(folder)!r})
        expected = read_all(folder)[2][G]
        readers = []
        for _ in range(10):
            readers.append(os.fork())
            if readers[-1] == 0:
                os._exit(not all(torch.equal(read_all(folder)[2][G], expected) for _ in range(2)))
        make(folder, signatures(50, seed=4), side="query", shard_rows=3)
        print([os.waitpid(reader, 0)[1] for reader in readers])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=100)
    assert done.stdout == f"{[0] * 10}\n", done.stdout + done.stderr
