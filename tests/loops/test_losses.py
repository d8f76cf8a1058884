"""The cross entropy of a map's positions equals the tensor expression and tinygrad's gradient."""

import numpy as np
import pytest

from tinygmf.dense.losses import cross_entropy
from tinygmf.loops import losses
from tinygmf.loops.calls import run_all
from tinygmf.tensors import tensor_from_numpy


def computed(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient, and the loss of each position."""
    known = [tensor_from_numpy(array, "CPU") for array in (logits, labels)]
    empty = np.full_like(logits, 7), np.full(labels.shape, 7, np.float32)
    outputs = [tensor_from_numpy(array, "CPU") for array in empty]
    slope, each = run_all(losses.cross_entropy, outputs, *known)
    return slope.numpy(), each.numpy()


@pytest.mark.parametrize("shape", [(2, 8, 8, 7), (1, 3, 5, 2)], ids=str)
def test_the_cross_entropy_equals_the_tensor_expression(rng, shape):
    logits = 5 * rng.standard_normal(shape, dtype=np.float32)
    logits[0, 0, 0, 0] = 100
    labels = rng.integers(0, shape[3], shape[:3]).astype(np.int32)
    labels[0, :2, 1] = 255, -1
    slope, each = computed(logits, labels)
    tensor = tensor_from_numpy(logits, "CPU")
    total, _ = cross_entropy(tensor, tensor_from_numpy(labels, "CPU"), axis=3)
    np.testing.assert_allclose(each.sum(), total.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, total.gradient(tensor)[0].numpy(), atol=1e-6)
    assert not each[0, :2, 1].any() and not slope[0, :2, 1].any()


def test_numbers_that_are_none_stay_so(rng):
    logits = rng.standard_normal((1, 2, 2, 3), dtype=np.float32)
    logits[0, 0, 0, 1], logits[0, 1, 1, 2] = np.nan, np.inf
    slope, each = computed(logits, np.zeros((1, 2, 2), np.int32))
    assert np.isnan(each).tolist() == [[[True, False], [False, True]]]
    assert np.isnan(slope[0, 0, 0]).all() and np.isnan(slope[0, 1, 1]).any()
