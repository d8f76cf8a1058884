"""AdamW's step in loop nests equals the tensor expression, of any length."""

import numpy as np
import pytest

from tinygmf.tensors import tensor_from_numpy
from tinygmf.training.update import update, update_schedule

NAMES = (
    *("weights", "gradient", "first", "second", "average"),
    *("statistics", "average_statistics", "decay", "rates"),
)
NOT_NEGATIVE = "second", "decay", "rates"
KNOWN = "statistics", "decay", "rates"  # what a step does not change
Arrays = dict[str, np.ndarray]


def stepped(arrays: Arrays, device: str) -> tuple[float, Arrays]:
    """The gradient's norm, and all arrays after a step."""
    schedule = update_schedule(rate=1e-2, step=3, clip=2.0, ema=0.9)
    tensors = {name: tensor_from_numpy(arrays[name], device).realize() for name in NAMES}
    norm = update(*tensors.values(), tensor_from_numpy(schedule, device)).item()
    return norm, {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture
def numbers(rng):
    """A function that draws what `update` needs, for so many weights and statistics."""

    def draw(weights: int, statistics: int = 6) -> Arrays:
        lengths = {name: statistics if "statistics" in name else weights for name in NAMES}
        arrays = {n: rng.standard_normal(length, dtype=np.float32) for n, length in lengths.items()}
        return arrays | {name: np.abs(arrays[name]) for name in NOT_NEGATIVE}

    return draw


@pytest.mark.parametrize(("weights", "statistics"), [(1, 1), (31, 7), (96, 6)])
def test_a_step_equals_the_tensor_expression(numbers, weights, statistics):
    arrays = numbers(weights, statistics)
    norm, found = stepped(arrays, "CPU")
    assert norm == pytest.approx(float(np.linalg.norm(arrays["gradient"])), rel=1e-6)
    expected_norm, expected = stepped(arrays, "PYTHON")
    assert norm == pytest.approx(expected_norm, rel=1e-6)
    for name, one in found.items():
        np.testing.assert_allclose(one, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        changes = name not in KNOWN
        assert (one != arrays[name]).any() == changes, name
    assert not found["gradient"].any()


def test_both_averages_move_by_the_same_share(numbers):
    arrays = numbers(96)
    _, found = stepped(arrays, "CPU")
    for mean, new in (("average", "weights"), ("average_statistics", "statistics")):
        expected = 0.9 * arrays[mean] + 0.1 * found[new]
        np.testing.assert_allclose(found[mean], expected, rtol=1e-5, atol=1e-6)


def test_the_norm_is_that_of_all_rows(numbers):
    arrays = numbers(3 * 5003)
    norm = float(np.linalg.norm(arrays["gradient"]))
    assert stepped(arrays, "CPU")[0] == pytest.approx(norm, rel=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing_else(numbers):
    arrays = numbers(96)
    arrays["gradient"][7] = np.nan
    norm, found = stepped(arrays, "CPU")
    assert np.isnan(norm)
    for name in set(NAMES) - {"gradient"}:
        np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)
    assert not found["gradient"].any()
