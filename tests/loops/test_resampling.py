"""Resizing and pooling backward are the transposes of their forward forms, which are compared with
NumPy."""

import numpy as np
import pytest

from tinygmf.dense import roi
from tinygmf.dense.pictures import resized
from tinygmf.loops import resampling, sampling
from tinygmf.loops.calls import run
from tinygmf.tensors import tensor_from_numpy

RNG_SEED = 5
SIZES = [((3, 4), (6, 8)), ((4, 3), (9, 11)), ((1, 2), (4, 4)), ((6, 6), (4, 4)), ((3, 3), (3, 3))]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng([RNG_SEED, *shape]).standard_normal(shape).astype(np.float32)


def computed(kernel, start: np.ndarray, *inputs: np.ndarray, **options: object) -> np.ndarray:
    """What a kernel leaves in a tensor that holds `start`."""
    tensors = [tensor_from_numpy(array, "CPU") for array in (start, *inputs)]
    return run(kernel, *tensors, **options).numpy()


@pytest.mark.parametrize("size, new_size", SIZES)
def test_resizing_equals_numpy_s(size, new_size):
    x, other = random(2, *size, 5), random(2, *new_size, 5)
    empty = np.zeros((2, *new_size, 8), np.float32)
    wide = computed(resampling.resize, empty, x, plus=tensor_from_numpy(other, "CPU"), to=3)
    expected = np.stack([resized(one, new_size) for one in x]) + other
    np.testing.assert_allclose(wide[..., 3:], expected, atol=2e-6)
    assert not wide[..., :3].any()


@pytest.mark.parametrize("size, new_size", SIZES)
def test_resizing_backward_is_the_transpose(size, new_size):
    x, g = random(2, *size, 5), random(2, *new_size, 7)
    forward = np.stack([resized(one, new_size) for one in x])
    back = computed(resampling.resize_back, np.zeros_like(x), g, at=2)
    np.testing.assert_allclose((forward * g[..., 2:]).sum(), (x * back).sum(), rtol=1e-4)
    plus = tensor_from_numpy(x, "CPU")
    more = computed(resampling.resize_back, np.zeros_like(x), g, at=2, plus=plus)
    np.testing.assert_allclose(more, back + x, atol=1e-5)


@pytest.mark.parametrize("new_size", [(6, 8), (5, 7)])
def test_doubling_backward_is_the_transpose(new_size):
    x, g = random(2, 3, 4, 5), random(2, *new_size, 5)
    forward = computed(sampling.double_loops, np.zeros_like(g), x)
    back = computed(resampling.double_back, np.zeros_like(x), g)
    np.testing.assert_allclose((forward * g).sum(), (x * back).sum(), rtol=1e-4)


def test_pooling_backward_is_the_transpose_where_boxes_share_places():
    boxes = np.array([[0, 0, 20, 30], [4, 4, 28, 28], [4, 4, 28, 28], [30, 2, 31, 3]], np.float32)
    found = roi.lookups(
        boxes, np.array([0, 0, 1, 1]), (32, 32), [(8, 8), (4, 4), (2, 2), (1, 1)], 3
    )
    lookups = [*found.rows, *found.columns]
    x, g = random(2 * 85, 5), random(4, 3, 3, 5)
    forward = computed(sampling.pool_loops, np.zeros_like(g), x, *lookups)
    back = computed(resampling.pool_back, np.ones_like(x), g, *lookups) - 1
    np.testing.assert_allclose((forward * g).sum(), (x * back).sum(), rtol=1e-4)
    assert back.any()
