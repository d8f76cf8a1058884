"""What is counted as right."""

import numpy as np
import pytest

from tinygmf.data.evaluation import count_correct


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_label_counts_where_fewer_than_k_classes_come_before_it(k):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (50, 7)).astype(np.float32)  # with many equal ones
    labels = rng.integers(0, 7, 50)
    before = [  # larger ones, and equal ones of a lower number
        sum(row[j] > row[label] or (row[j] == row[label] and j < label) for j in range(7))
        for row, label in zip(logits, labels, strict=True)
    ]
    assert count_correct(logits, labels, k) == sum(number < k for number in before)


def test_with_fewer_classes_than_k_every_label_counts():
    assert count_correct(np.zeros((3, 2)), np.array([0, 1, 1]), k=5) == 3
