"""Rows as directions."""

import pytest
import torch

from rept.utils.tensors import product, unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_scaled_to_norm_1_however_small(dtype: torch.dtype) -> None:
    rows = torch.tensor([[3.0, 4.0], [3e-30, -4e-30], [0.0, 0.0]], dtype=dtype)  # float32 squares of 1e-30 are 0
    expected = torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(unit(rows), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "queries", "width"), [(37, 5, 64), (1, 1, 1), (0, 3, 8), (3, 0, 8), (3, 2, 0)])
def test_inner_products_are_those_of_float64(dtype: torch.dtype, rows: int, queries: int, width: int) -> None:
    x, y = torch.randn(rows, 2 * width, dtype=dtype)[:, ::2], torch.randn(queries, width, dtype=dtype)
    made = product(x, y)
    assert made.dtype == dtype and made.shape == (rows, queries)
    exact = x.double() @ y.double().T
    bound = 8 * torch.finfo(dtype).eps * x.double().norm(dim=1)[:, None] * y.double().norm(dim=1)
    assert ((made.double() - exact).abs() <= bound).all()
