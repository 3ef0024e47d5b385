import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer

from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.types import Batch, Side, Status
from tests.helpers.templates import tokenizer


class Rows(AttributionDataModule):
    """Rows in memory that count how often each is read."""

    def __init__(
        self, rows: Sequence[Sample | Status], queries: Sequence[Sample | Status] = (), **settings: int
    ) -> None:
        super().__init__(**settings)
        self.rows = {"train": rows, "query": queries}
        self.read: Counter[int] = Counter()
        self.attach(tokenizer("qwen"))

    def source(self, side: Side) -> "Rows.Source":
        return Rows.Source(self.rows[side], self.read)

    class Source:
        def __init__(self, rows: Sequence[Sample | Status], read: Counter[int]) -> None:
            self.rows, self.read = rows, read

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, row: int) -> Sample | Status:
            self.read[row] += 1
            return self.rows[row]


def row(words: int) -> Sample | Status:
    """A sample with a response of that many words; an invalid row if negative."""
    if words < 0:
        return Status.NOT_A_STRING
    return Sample(({"role": "user", "content": "Name the king."},), " king" * words)


def rows_of(batch: Batch) -> list[int]:
    return batch.row.tolist() + [number for number, _ in batch.set_aside]


WORDS = [3, 1, 4, 0, 5, 9, 2, 6, -1, 3, 5, 8, 0, -1, -1, 0, 7, 9, 3, 2, 3, 8, 4, 6]


def module(**settings: int) -> Rows:
    return Rows([row(words) for words in WORDS], **{"window": 5, "tokens_per_batch": 120, "max_length": 64} | settings)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_every_row_is_in_one_batch_for_any_number_of_ranks(world: int) -> None:
    plan = list(module().loader("train"))
    dealt = [list(module().loader("train", rank=rank, world_size=world)) for rank in range(world)]
    assert sorted(number for batch in plan for number in rows_of(batch)) == list(range(len(WORDS)))
    assert sum(map(len, dealt)) == len(plan)
    for batches in dealt:
        for batch in batches:
            assert sum(same(batch, other) for other in plan) == 1


class Exchange:
    """Exchange between threads, in place of ranks, of whether any of them has a batch."""

    def __init__(self, world: int) -> None:
        self.own = [False] * world
        self.barrier = threading.Barrier(world, timeout=20)
        self.steps = 0

    def any_has(self, rank: int, own: bool) -> bool:
        self.own[rank] = own
        self.steps += self.barrier.wait() == 0
        found = any(self.own)
        self.barrier.wait()  # every thread has read the values before they change
        return found


def in_step(world: int, done: np.ndarray | None = None, words: Sequence[int] | None = None) -> list[list[Batch]]:
    """Each rank's batches, with ranks as threads that wait for each other before every batch."""
    exchange = Exchange(world)

    def batches_of(rank: int) -> list[Batch]:
        data = module() if words is None else Rows([row(count) for count in words], window=5, max_length=64)
        any_has = partial(exchange.any_has, rank)
        return list(data.loader("train", rank=rank, world_size=world, done=done, in_step=any_has))

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(batches_of, range(world)))


@pytest.mark.parametrize("stored", [0, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_ranks_in_step_take_equally_many_steps_over_the_same_rows(world: int, stored: int) -> None:
    plan = list(module().loader("train"))
    done = np.zeros(len(WORDS), dtype=bool)
    done[[number for batch in plan[:stored] for number in rows_of(batch)]] = True
    dealt = in_step(world, done)
    assert len({len(batches) for batches in dealt}) == 1
    assert all(len(batch) for batches in dealt for batch in batches), "every step runs the model"
    kept = [batch for batches in dealt for batch in batches if not batch.filler]
    assert all(sum(same(batch, other) for other in plan) == 1 for batch in kept)
    aside = [number for batches in dealt for batch in batches if batch.filler for number, _ in batch.set_aside]
    assert sorted([number for batch in kept for number in rows_of(batch)] + aside) == np.flatnonzero(~done).tolist()


def test_ranks_in_step_keep_the_rows_set_aside() -> None:
    dealt = in_step(3, words=[0, -1, 0])
    assert [[len(batch) for batch in batches] for batches in dealt] == [[1], [1], [1]]
    assert sum(len(batch.set_aside) for batches in dealt for batch in batches) == 3


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_a_rank_tokenizes_its_own_share_and_two_windows_more_at_most(world: int) -> None:
    rows = 97
    tokenized, had = [], Counter[int]()
    for rank in range(world):
        data = Rows([row(1 + i % 9) for i in range(rows)], window=5, tokens_per_batch=60)
        had.update(number for batch in data.loader("train", rank=rank, world_size=world) for number in rows_of(batch))
        tokenized.append(data.read.total())
        assert set(data.read.values()) == {1}
    assert had == Counter(range(rows))
    assert max(tokenized) <= rows / world + 2 * 5
    assert sum(tokenized) <= rows + 2 * 5 * world


def test_a_single_window_is_shared_by_all_ranks() -> None:
    data = module(window=24, tokens_per_batch=60)
    dealt = [len(list(data.loader("train", rank=rank, world_size=3))) for rank in range(3)]
    assert max(dealt) - min(dealt) <= 1 and min(dealt) > 0


def test_rows_stored_by_another_distribution_of_batches_are_left_out() -> None:
    """Formerly batch i of window w went to rank (w + i) mod 2; such a run was killed after its rank 1 had finished."""
    plan = list(module().loader("train"))
    windows = Counter[int]()
    done = np.zeros(len(WORDS), dtype=bool)
    for batch in plan:
        window = rows_of(batch)[0] // 5
        done[rows_of(batch)] = (window + windows[window]) % 2 == 1
        windows[window] += 1
    assert done.any() and not done.all()
    left = [number for rank in (0, 1) for batch in module().loader("train", rank=rank, world_size=2, done=done)
            for number in rows_of(batch)]  # fmt: skip
    assert sorted(left) == np.flatnonzero(~done).tolist()


def test_batches_follow_the_plan() -> None:
    for batch in module().loader("train"):
        windows = {number // 5 for number in rows_of(batch)}
        assert len(windows) == 1
        order = list(zip(batch.length.tolist(), batch.row.tolist(), strict=True))
        assert order == sorted(order)
        assert batch.input_ids.numel() <= 120 or len(batch) == 1
        assert batch.input_ids.shape[1] == max(batch.length.tolist(), default=0)


def test_a_batch_takes_as_many_rows_as_fit() -> None:
    plan = list(module().loader("train"))
    for one, other in zip(plan, plan[1:], strict=False):
        if one.row[0] // 5 == other.row[0] // 5:
            assert (len(one) + 1) * int(other.length[0]) > 120


def test_a_row_longer_than_the_budget_is_a_batch_by_itself() -> None:
    assert {len(batch) for batch in module(tokens_per_batch=1).loader("train")} <= {0, 1}


def test_rows_set_aside_travel_with_the_first_batch_of_their_window() -> None:
    plan = list(module(window=3).loader("train"))
    aside = {batch.set_aside[0][0] // 3: batch for batch in plan if batch.set_aside}
    assert aside[4].set_aside == ((12, Status.EMPTY_RESPONSE), (13, Status.NOT_A_STRING), (14, Status.NOT_A_STRING))
    assert len(aside[4]) == 0 and aside[4].input_ids.shape == (0, 0)
    assert len(aside[1]) and aside[1].set_aside == ((3, Status.EMPTY_RESPONSE),)


@settings(deadline=None, max_examples=40)
@given(stop=st.integers(0, 30), world=st.integers(1, 4))
def test_a_resumed_run_makes_the_same_batches(stop: int, world: int) -> None:
    plan = list(module().loader("train"))
    done = np.zeros(len(WORDS), dtype=bool)
    for batch in plan[:stop]:
        done[rows_of(batch)] = True
    loaders = [module().loader("train", rank=rank, world_size=world, done=done) for rank in range(world)]
    left = [batch for loader in loaders for batch in loader]
    assert len(left) == len(plan[stop:])
    for batch in plan[stop:]:
        assert sum(same(batch, other) for other in left) == 1


def test_stored_windows_are_not_read() -> None:
    data, done = module(), np.zeros(len(WORDS), dtype=bool)
    done[:10] = True
    list(data.loader("train", done=done))
    assert data.read == Counter(range(10, len(WORDS)))


def test_rows_after_the_end_of_done_are_not_stored() -> None:
    """Without the number of rows, `AttributionStore.stored_rows` ends at the highest row that it finds."""
    left = [number for batch in module().loader("train", done=np.ones(10, dtype=bool)) for number in rows_of(batch)]
    assert sorted(left) == list(range(10, len(WORDS)))


def test_a_partly_stored_batch_is_refused() -> None:
    done = np.zeros(len(WORDS), dtype=bool)
    done[0] = True
    with pytest.raises(UsageError, match="tokens_per_batch"):
        list(module(window=24, tokens_per_batch=10**6).loader("train", done=done))


def test_rows_are_read_a_window_at_a_time() -> None:
    data = module()
    next(iter(data.loader("train")))
    assert data.read == Counter(range(5))


def test_chosen_rows_follow_the_same_rules() -> None:
    chosen = [20, 3, 4, 17, 16, 1, 23]
    batches = list(module().batches("train", chosen))
    assert sorted(number for batch in batches for number in rows_of(batch)) == sorted(chosen)
    assert batches[0].row[0] == 20 and all(set(rows_of(batch)) <= {*chosen[:5]} for batch in batches[:2])
    assert list(module().batches("train", [])) == []


def test_a_query_without_a_response_gets_the_models_answer() -> None:
    asked = Sample(({"role": "user", "content": "Name"},), None)
    data = Rows([row(1)], [asked, Sample(asked.messages, "You")], max_length=40)
    assert data.status("query", 0) is Status.EMPTY_RESPONSE and data.status("query", 1) is Status.ATTRIBUTED
    (prompt_alone, whole) = data.sample_lengths("query")
    data.answers = {0: "You", 1: "not asked"}
    assert data.sample("query", 0) == data.sample("query", 1) == Sample(asked.messages, "You")
    assert data.encoded("query", 0) == data.encoded("query", 1)
    assert 0 < prompt_alone < whole == data.sample_lengths("query")[0]
    (batch,) = data.loader("query")
    assert batch.side == "query" and batch.text == (("Name", "You"), ("Name", "You"))


def test_status_predicts_the_batches() -> None:
    data = module()
    statuses = {number: data.status("train", number) for number in range(len(WORDS))}
    for batch in data.loader("train"):
        for number, cut in zip(batch.row.tolist(), batch.cut.tolist(), strict=True):
            assert statuses[number] is (Status.CUT if cut else Status.ATTRIBUTED)
        for number, status in batch.set_aside:
            assert statuses[number] is status


def test_lengths_are_sampled_evenly() -> None:
    data = module()
    assert len(data.sample_lengths("train", 3)) == 3 and set(data.read) == {0, 11, 23}
    lengths = data.sample_lengths("train")
    assert len(lengths) == len(WORDS) and [i for i, n in enumerate(lengths) if n == 0] == [3, 8, 12, 13, 14, 15]


def test_a_digest_changes_with_any_row() -> None:
    rows = [row(words) for words in WORDS]
    changed = [*rows[:-1], Status.MALFORMED]
    digests = {Rows(rows).digest("train"), Rows(changed).digest("train"), Rows(rows[::-1]).digest("train")}
    assert len(digests) == 3 and Rows(list(rows)).digest("train") in digests


@pytest.mark.parametrize("wrong", [{"max_length": 1}, {"tokens_per_batch": 0}, {"window": "5"}, {"window": True}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"datamodule.{next(iter(wrong))} to be a whole number"):
        module(**wrong)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # between Lightning and torch
def test_lightning_predicts_on_it() -> None:
    class Reader(LightningModule):
        def predict_step(self, batch: Batch, _: int) -> list[int]:
            return rows_of(batch)

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    seen = trainer.predict(Reader(), module().loader("train"))
    assert sorted(sum(seen, [])) == list(range(len(WORDS)))
