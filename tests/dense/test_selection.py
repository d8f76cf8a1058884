"""The best k inside a program are those that a stable sort puts first."""

import numpy as np
import pytest
from tinygrad import Tensor

from tinygmf.dense.selection import best


@pytest.mark.parametrize(("n", "k"), [(300, 1), (1000, 130)])
def test_it_takes_what_a_stable_sort_puts_first(n, k):
    rng = np.random.default_rng(n)
    values = rng.standard_normal((3, n)).astype(np.float32)
    values[0] = np.round(values[0])  # ties everywhere
    values[1, : n // 2] = -np.inf
    values[2] = 0.25
    found = np.sort(best(Tensor(values), k).numpy(), axis=1)
    for row, places in zip(values, found, strict=True):
        assert places.tolist() == np.sort(np.argsort(-row, kind="stable")[:k]).tolist()
