"""AdamW's step in loop nests equals the tensor expression, of any length."""

import numpy as np
import pytest

from tinygmf.tensors import tensor_from_numpy
from tinygmf.training.update import update, update_schedule

NAMES = "weights", "gradient", "first", "second", "average", "decay", "rates"


def stepped(arrays: list[np.ndarray], device: str) -> tuple[float, list[np.ndarray]]:
    """The gradient's norm, and what the first five arrays are after a step."""
    schedule = update_schedule(rate=1e-2, step=3, clip=2.0, ema=0.9)
    tensors = [tensor_from_numpy(array, device).realize() for array in arrays]
    norm = update(*tensors, tensor_from_numpy(schedule, device)).item()
    return norm, [tensor.numpy() for tensor in tensors[:5]]


@pytest.fixture
def numbers(rng):
    """A function that draws what `update` needs, of this length."""

    def draw(length: int) -> list[np.ndarray]:
        arrays = [rng.standard_normal(length, dtype=np.float32) for _ in NAMES]
        for i in (3, 5, 6):  # averages of squares, weight decay and factors
            arrays[i] = np.abs(arrays[i])
        return arrays

    return draw


@pytest.mark.parametrize("length", [1, 31, 96])
def test_a_step_equals_the_tensor_expression(numbers, length):
    arrays = numbers(length)
    norm, found = stepped(arrays, "CPU")
    assert norm == pytest.approx(float(np.linalg.norm(arrays[1])), rel=1e-6)
    expected_norm, expected = stepped(arrays, "PYTHON")
    assert norm == pytest.approx(expected_norm, rel=1e-6)
    for name, one, other in zip(NAMES, found, expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not found[1].any()


def test_the_norm_is_that_of_all_rows(numbers):
    arrays = numbers(3 * 5003)
    assert stepped(arrays, "CPU")[0] == pytest.approx(float(np.linalg.norm(arrays[1])), rel=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing_else(numbers):
    arrays = numbers(96)
    arrays[1][7] = np.nan
    norm, found = stepped(arrays, "CPU")
    assert np.isnan(norm)
    for i in (0, 2, 3, 4):
        np.testing.assert_array_equal(found[i], arrays[i])
    assert not found[1].any()
