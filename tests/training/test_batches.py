import numpy as np
import pytest
import torch

from datamodules.synthetic import SyntheticData
from rept.errors import UsageError
from rept.training.batches import TrainingBatches, TrainingRows
from rept.training.from_scratch import train_tokenizer
from rept.types import IGNORE, Status


@pytest.fixture(scope="module")
def data() -> SyntheticData:
    data = SyntheticData(rows=90, poisoned=5, queries=1, exclude=[0, 7])
    texts = [text for sample in data.source("train") for text in (sample.prompt, sample.response)]
    data.attach(train_tokenizer(texts, vocab_size=400, max_length=256))
    return data


@pytest.fixture(scope="module")
def rows(data) -> TrainingRows:
    return TrainingRows(data)


def test_excluded_rows_are_left_out_and_the_others_keep_their_numbers(rows):
    assert rows.row.tolist() == [row for row in range(90) if row not in (0, 7)]


def test_a_batch_is_that_of_the_data_module(data, rows):
    chosen = [3, 50, 20]
    batch = rows.batch(chosen)
    for i, row in enumerate(rows.row[chosen]):
        (alone,) = data.batches("train", [int(row)])
        length = int(alone.length)
        assert batch.row[i] == row and batch.length[i] == length and batch.prompt_end[i] == alone.prompt_end
        assert torch.equal(batch.input_ids[i, :length], alone.input_ids[0])
        assert torch.equal(batch.labels[i, :length], alone.labels[0])
        assert (batch.input_ids[i, length:] == data.encoder.pad_id).all()
        assert (batch.labels[i, length:] == IGNORE).all()


def test_rows_that_no_model_can_learn_from_are_counted(data, monkeypatch):
    encode = data.encoder.encode
    monkeypatch.setattr(data.encoder, "encode", lambda samples: [Status.EMPTY_PROMPT, *encode(samples)[1:]])
    rows = TrainingRows(data)
    assert rows.set_aside == {"empty prompt": 1} and len(rows) == 87
    monkeypatch.setattr(data.encoder, "encode", lambda samples: [Status.EMPTY_PROMPT] * len(samples))
    with pytest.raises(UsageError, match="No training row can be trained on: 88 empty prompt."):
        TrainingRows(data)


def drawn(batches: TrainingBatches, number: int) -> list[list[int]]:
    """The rows of so many batches, epoch after epoch."""
    found = []
    while len(found) < number:
        for batch in batches:
            found.append(batch.row.tolist())
            if len(found) == number:
                break
    return found


def test_every_row_once_an_epoch_in_an_order_of_its_own(rows):
    batches = TrainingBatches(rows, batch_size=8, seed=0)
    assert len(batches) == 11
    one, two = drawn(batches, 11), drawn(batches, 11)
    for epoch in (one, two):
        assert sorted(row for batch in epoch for row in batch) == rows.row.tolist()
    assert one != two


def test_seed_decides_the_order(rows):
    first = drawn(TrainingBatches(rows, 8, seed=0), 5)
    assert first == drawn(TrainingBatches(rows, 8, seed=0), 5) != drawn(TrainingBatches(rows, 8, seed=1), 5)


@pytest.mark.parametrize("position", [0, 4, 11, 15, 22])
def test_resumes_from_any_position(rows, position):
    whole = drawn(TrainingBatches(rows, 8, seed=3), 33)
    before, after = TrainingBatches(rows, 8, seed=3), TrainingBatches(rows, 8, seed=3)
    drawn(before, position)
    after.load_state_dict(before.state_dict())
    assert drawn(after, 33 - position) == whole[position:]


def test_ranks_share_an_epoch(rows):
    ranks = [drawn(TrainingBatches(rows, 8, 0, rank=rank, world_size=3), 4) for rank in range(3)]
    dealt = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert dealt[:11] == drawn(TrainingBatches(rows, 8, 0), 11)
    assert dealt[11:] == dealt[:1]  # the last round is filled up, so that no rank waits for another


def test_more_ranks_than_batches(rows):
    ranks = [drawn(TrainingBatches(rows, 50, 0, rank=rank, world_size=5), 1)[0] for rank in range(5)]
    assert ranks[0] == ranks[2] == ranks[4] and ranks[1] == ranks[3]


def test_batches_hold_rows_of_about_one_length(rows):
    plan = TrainingBatches(rows, 8, seed=0).epoch(0)
    padded = sum(len(chosen) * rows.length[chosen].max() for chosen in plan)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    unsorted = sum(8 * rows.length[shuffled[i : i + 8]].max() for i in range(0, 88, 8))
    assert padded < 1.1 * rows.length.sum() < unsorted
