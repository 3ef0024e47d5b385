"""Rows as directions."""

import pytest
import torch

from rept.utils.tensors import unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_scaled_to_norm_1_however_small(dtype: torch.dtype) -> None:
    rows = torch.tensor([[3.0, 4.0], [3e-30, -4e-30], [0.0, 0.0]], dtype=dtype)  # float32 squares of 1e-30 are 0
    expected = torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(unit(rows), expected)
