"""The best of a stream of scores against a plain sort."""

import numpy as np
import torch

from rept.ranking.topk import TopK
from tests.helpers.stores import sorted_rows


def test_top_k_of_random_ties_in_random_blocks():
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, queries, k = rng.integers(1, 30), rng.integers(1, 4), rng.integers(0, 8)
        score = torch.from_numpy(rng.integers(-2, 3, (rows, queries)).astype(np.float32))
        order = torch.from_numpy(rng.permutation(rows))
        top, low = TopK(queries, k), TopK(queries, k, lowest=True)
        for piece in order.split(int(rng.integers(1, 10))):
            top.add(piece, score[piece])
            low.add(piece, score[piece])
        assert top.hits().row.tolist() == sorted_rows(score.T, k)
        assert low.hits().row.tolist() == sorted_rows(-score.T, k)
