"""Grouping rows into batches, and padding on the right."""

import pytest
import torch

from rept.data.padding import batch_slices, padded
from rept.types import IGNORE


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], [[]]),
        ([2, 2, 3, 3, 4], [[2, 2, 3], [3, 4]]),  # three of 3 fill 9 of 10 tokens; three of 4 would not fit
        ([5, 5, 6, 30, 31], [[5, 5], [6], [30], [31]]),  # longer than the budget: alone
    ],
)
def test_a_batch_takes_as_many_rows_as_fit(lengths: list[int], batches: list[list[int]]) -> None:
    assert [lengths[rows] for rows in batch_slices(lengths, 10)] == batches


def test_rows_are_padded_on_the_right_and_prompts_are_ignored() -> None:
    input_ids, labels = padded(
        [
            (torch.tensor([5, 6, 7, 4]), torch.tensor([False, True, False, True])),
            (torch.tensor([8, 9]), torch.tensor([False, True])),
        ],
        pad_id=0,
    )
    assert input_ids.tolist() == [[5, 6, 7, 4], [8, 9, 0, 0]]
    assert labels.tolist() == [[IGNORE, 6, IGNORE, 4], [IGNORE, 9, IGNORE, IGNORE]]


def test_without_rows_a_batch_is_empty() -> None:
    assert [tensor.shape for tensor in padded([], pad_id=0)] == [(0, 0), (0, 0)]
