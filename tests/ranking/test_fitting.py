"""Fitting of scorers: the sample that they learn from, and the same result in any number of processes."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from rept.ranking import fitting
from rept.ranking import rank as ranking
from rept.ranking.fitting import reservoir_sample
from rept.ranking.rank import merge, rank
from rept.ranking.scorer import Scorer
from rept.store import reader
from rept.types import Key
from scorers.bm25 import BM25
from scorers.centred import Centred
from scorers.cosine import Cosine
from scorers.datainf import DataInf
from scorers.standout import Standout
from scorers.whitened import Whitened
from tests.helpers import forks
from tests.helpers.commands import free_port
from tests.helpers.stores import G, H, make, signatures

OTHER = [Key("mlp_output", 3, "representation"), Key("mlp_output", 3, "gradient")]
KEYS = [H, G, *OTHER]
ROWS = 90
SCORERS = [Standout(memory=50), Standout(), Centred(), Whitened(), DataInf()]


def by_loop(count, size, seed):
    """Algorithm R, one row at a time."""
    generator = torch.Generator().manual_seed(seed)
    kept = list(range(min(count, size)))
    for number in range(size, count):
        place = int(torch.rand(1, generator=generator, dtype=torch.float64) * (number + 1))
        if place < size:
            kept[place] = number
    return kept


@pytest.mark.parametrize(("count", "size"), [(0, 5), (3, 5), (5, 5), (40, 10), (3000, 700)])
def test_a_sample_is_that_of_algorithm_r(count, size, monkeypatch):
    expected = by_loop(count, size, seed=3)
    assert reservoir_sample(count, size, seed=3).tolist() == expected
    monkeypatch.setattr(fitting, "_NUMBERS_AT_ONCE", 7)
    assert reservoir_sample(count, size, seed=3).tolist() == expected


def test_a_sample_is_uniform():
    counts = np.zeros(40)
    for seed in range(400):
        kept = reservoir_sample(40, 10, seed)
        assert len(np.unique(kept)) == 10
        counts[kept] += 1
    assert np.abs(counts - 100).max() < 5 * (400 * 0.25 * 0.75) ** 0.5


class Keeping(Scorer):
    """Keeps the rows that it is fitted to."""

    needs = ("representation",)

    def __init__(self, fit_rows):
        self.fit_rows, self.fit_seed = fit_rows, 5

    def fit(self, train):
        self.rows = torch.cat([block["representation"] for block in train])
        self.first = H._replace(layer=int(self.rows[0, 0]))  # any object

    def __call__(self, train, query):
        return Cosine(self.needs)(train, query) * self.first.layer


@pytest.mark.parametrize("fit_rows", [None, 20, 1000])
def test_a_scorer_is_fitted_to_all_rows_or_to_its_sample(tmp_path, fit_rows):
    store = make(tmp_path, signatures(ROWS, KEYS), world=2, lost={5, 41}, cut={7})
    places = [("mlp_output", 3), ("residual_stream", 2)]
    fitted = fitting.fit_scorers(Keeping(fit_rows), store, places, "cpu", rows_per_block=4)
    for site, layer in places:
        key = Key(site, layer, "representation")
        everything = torch.cat([block.fields[key] for block in store.blocks([key])])
        expected = everything if fit_rows is None else everything[reservoir_sample(ROWS - 2, fit_rows, 5)]
        assert torch.equal(fitted[site, layer].rows, expected)


def in_processes(count, work, monkeypatch):
    """The results of ``work(rank)`` by ranks that are threads here, and how often each shard was read while fitting."""
    here, barrier, slots = threading.local(), threading.Barrier(count), [None] * count
    real_read, read = reader.read_shard, Counter()

    def gathered(own):
        slots[here.rank] = own
        barrier.wait(20)
        everyone = list(slots)
        barrier.wait(20)
        return everyone

    def read_shard(path, *args):
        if here.fitting:
            read[path.name] += 1
        return real_read(path, *args)

    real_fit = fitting.fit_scorers

    def fit_scorers(*args, **options):
        here.fitting = True
        fitted = real_fit(*args, **options)
        here.fitting = False
        return fitted

    for module in (fitting, reader, ranking):
        monkeypatch.setattr(module, "process", lambda: (here.rank, count))
    for module in (fitting, reader):
        monkeypatch.setattr(module, "gathered", gathered)
    monkeypatch.setattr(reader, "read_shard", read_shard)
    monkeypatch.setattr(ranking, "fit_scorers", fit_scorers)
    results, faults = [None] * count, []

    def run(number):
        here.rank, here.fitting = number, False
        try:
            results[number] = work(number)
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
    return results, read


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("scorer", [*SCORERS, Keeping(None)], ids=lambda scorer: type(scorer).__name__)
def test_processes_share_the_reading_and_fit_as_one(tmp_path, scorer, count, monkeypatch):
    store = make(tmp_path, signatures(ROWS, KEYS), world=2, lost={5, 41})
    queries = signatures(6, KEYS, seed=1)
    alone = rank(store, queries, scorer, top_k=20, bottom_k=3)

    def work(number):
        return rank(store, queries, scorer, top_k=20, bottom_k=3, part=(number, count))

    parts, read = in_processes(count, work, monkeypatch)
    merged = merge(parts, top_k=20, bottom_k=3)
    for one, other in ((merged.best, alone.best), (merged.lowest, alone.lowest)):
        assert torch.equal(one.row, other.row) and torch.equal(one.score, other.score)
    # A sample is read once for both sites; other scorers read once (DataInf twice) for each site.
    passes = 1 if scorer.fit_rows is not None else 4 if isinstance(scorer, DataInf) else 2
    assert set(read) == set(store.shard_names) and set(read.values()) == {passes}


def test_what_a_scorer_learned_reaches_the_other_processes_whatever_it_is(tmp_path, monkeypatch):
    texts = ["the king of Norland", "rain again", "a king and a queen", "the weather is fine", "fine"]
    key = Key("text", 0, "text")
    rows = torch.zeros(len(texts), 32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text.encode())).float()
    store = make(tmp_path, {key: rows}, dtype="float32", shard_rows=2)
    query = {key: store.read([0], [key])[key]}
    alone = rank(store, query, BM25(), top_k=5).best

    def work(number):
        return rank(store, query, BM25(), top_k=5, part=(number, 2))

    parts, _ = in_processes(2, work, monkeypatch)
    best = merge(parts, top_k=5).best
    assert torch.equal(best.row, alone.row) and torch.equal(best.score, alone.score) and alone.score.any()


@pytest.mark.parametrize("scorer", [Centred(), Whitened(), DataInf()], ids=lambda scorer: type(scorer).__name__)
def test_what_a_scorer_learned_is_on_the_device_of_the_process_that_got_it(scorer):
    scorer.fit([{H.field: torch.eye(4), G.field: torch.eye(4)}])
    fitted = {("residual_stream", 2): scorer}
    fitting._exchange(fitted, list(fitted), "meta")
    learned = [value for value in vars(scorer).values() if isinstance(value, torch.Tensor | dict)]
    tensors = [one for value in learned for one in (value.values() if isinstance(value, dict) else [value])]
    assert tensors and all(one.device.type == "meta" for one in tensors)


def test_a_scorer_that_learns_nothing_reads_nothing(tmp_path, monkeypatch):
    store = make(tmp_path, signatures(ROWS))
    monkeypatch.setattr(reader, "read_shard", None)
    assert (
        type(fitting.fit_scorers(Cosine(), store, [("residual_stream", 2)], "cpu", 4)["residual_stream", 2]) is Cosine
    )


def test_two_real_processes_fit_and_rank_as_one(tmp_path):
    store = make(tmp_path / "store", signatures(ROWS, KEYS), world=2)
    queries = signatures(6, KEYS, seed=1)
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys, torch
from torch import distributed
from rept.distributed.collectives import gathered, process
from rept.ranking.rank import merge, rank
from rept.store.reader import AttributionStore
from tests.ranking.test_fitting import KEYS, SCORERS
from tests.helpers.stores import signatures

torch.set_num_threads(1)
distributed.init_process_group("gloo")
store, queries = AttributionStore({str(tmp_path / "store")!r}, "train"), signatures(6, KEYS, seed=1)
found = []
for scorer in SCORERS:
    merged = merge(gathered(rank(store, queries, scorer, top_k=20, part=process())), 20)
    found.append((merged.best.row, merged.best.score))
rows = store.read([3, 80, 3], KEYS, together=True)
torch.save((found, list(rows.values())), {str(tmp_path)!r} + f"/found-{{process()[0]}}.pt")
distributed.destroy_process_group()
""")
    run = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", str(script))
    code, _, err = forks.finish(*run)
    assert code == 0, err
    for number in range(2):
        found, rows = torch.load(tmp_path / f"found-{number}.pt")
        for scorer, (row, score) in zip(SCORERS, found, strict=True):
            alone = rank(store, queries, scorer, top_k=20).best
            assert torch.equal(row, alone.row) and torch.equal(score, alone.score), type(scorer).__name__
        for one, other in zip(rows, store.read([3, 80, 3], KEYS).values(), strict=True):
            assert torch.equal(one, other)
