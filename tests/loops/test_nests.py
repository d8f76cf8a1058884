"""The loop nests of training: convolutions at every kind of size, and a whole step's slope."""

from dataclasses import replace

import numpy as np
import pytest
from tinygrad import Tensor

from tinygmf.config import VARIANTS
from tinygmf.loops import calls, norms, padding, products, tiles, values, windows
from tinygmf.loops.nest import Channels
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy, write_tensor
from tinygmf.training.gradient import draw_factors
from tinygmf.training.programs import Programs
from tinygmf.training.state import TrainingState
from tinygmf.weights.checkpoint import state_arrays


@pytest.fixture
def normal(rng):
    """A function that draws standard normal numbers of a shape."""
    return lambda *shape: rng.standard_normal(shape, dtype=np.float32)


def run(kernel, out: np.ndarray, *inputs: np.ndarray, share: bool = False, **options) -> np.ndarray:
    inputs += (np.ones(2, np.float32),) if share else ()
    tensors = [tensor_from_numpy(array, "CPU") for array in (out, *inputs)]
    return calls.run(kernel, *tensors, **options).numpy()


def by_hand(x: np.ndarray, weight: np.ndarray, g: np.ndarray, stride: int) -> tuple:
    """A convolution, x (B, H, W, K) by weight (k, k, K, E), and its gradients, tap by tap."""
    k, height, width = len(weight), x.shape[1], x.shape[2]
    rim = k // 2
    padded = np.pad(x, ((0, 0), (rim, rim), (rim, rim), (0, 0)))
    y, dx, dweight = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(weight)
    for i in range(k):
        for j in range(k):
            down = slice(i, i + stride * (g.shape[1] - 1) + 1, stride)
            across = slice(j, j + stride * (g.shape[2] - 1) + 1, stride)
            y += padded[:, down, across] @ weight[i, j]
            dx[:, down, across] += g @ weight[i, j].T
            dweight[i, j] = np.einsum("bhwk,bhwe->ke", padded[:, down, across], g)
    return y, dx[:, rim : rim + height, rim : rim + width], dweight


def padded(x: np.ndarray, size: tuple[int, ...], apart: int = 1) -> np.ndarray:
    """Zeros around a map of `size` in which the positions of x are this far apart."""
    height, width = (side + 2 for side in size)
    out = np.empty((len(x), height, width, x.shape[3]), np.float32)
    return run(padding.pad_loops, out, x, rim=1, apart=apart)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (4, 2)], ids=str)
@pytest.mark.parametrize("depth, columns", [(3, 4), (16, 10), (8, 72)])
def test_a_convolution_and_its_gradients_equal_those_by_hand(normal, size, stride, depth, columns):
    within, back_within = (1e-5, 1e-5) if columns == 4 else (3e-5, 1e-4)  # of many more terms
    x, weight = normal(2, *size, depth), normal(3, 3, depth, columns)
    g = normal(2, *(-(-n // stride) for n in size), columns)
    y, dx, dweight = by_hand(x, weight, g, stride)
    seen = padded(x, size)
    np.testing.assert_array_equal(seen, np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    found = run(products.dense, np.zeros_like(g), seen, weight, stride=stride)
    np.testing.assert_allclose(found, y, atol=within)
    swapped = np.ascontiguousarray(weight.swapaxes(2, 3))
    spread = products.Taps(3, stride, True, size).spread
    seen_back = padded(g, size if spread > 1 else g.shape[1:3], spread)
    found = run(products.dense, np.zeros_like(x), seen_back, swapped, back=True, stride=stride)
    np.testing.assert_allclose(found, dx, atol=back_within)
    there = normal(*weight.shape)
    found = run(products.dense_weight, there, seen, g, share=True, stride=stride)
    np.testing.assert_allclose(found, there + dweight, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (4, 2)], ids=str)
def test_a_depthwise_convolution_and_its_gradients_equal_those_by_hand(normal, size, stride):
    x, weight = normal(2, *size, 4), normal(5, 5, 4)
    g = normal(2, *(-(-n // stride) for n in size), 4)
    y, dx, dweight = by_hand(x, weight[..., None] * np.eye(4, dtype=np.float32), g, stride)
    found = run(windows.depthwise, np.zeros_like(g), x, weight, stride=stride)
    np.testing.assert_allclose(found, y, atol=1e-5)
    found = run(windows.depthwise, np.zeros_like(x), g, weight, back=True, stride=stride)
    np.testing.assert_allclose(found, dx, atol=1e-5)
    found = run(windows.depthwise_weight, np.zeros_like(weight), x, g, share=True, stride=stride)
    np.testing.assert_allclose(found, np.einsum("ijkk->ijk", dweight), atol=1e-4)


@pytest.mark.parametrize("machine", sorted(tiles.VECTORS))
def test_vectors_of_several_places_give_the_same_for_any_processor(normal, machine):
    x, weight, g = normal(1, 5, 12, 8), normal(7, 7, 8), normal(1, 5, 12, 8)
    y, dx, dweight = by_hand(x, weight[..., None] * np.eye(8, dtype=np.float32), g, 1)
    with tiles.for_machine(registers=machine):
        found = run(windows.depthwise, np.zeros_like(g), x, weight)
        found_back = run(windows.depthwise, np.zeros_like(x), g, weight, back=True)
        found_weight = run(windows.depthwise_weight, np.zeros_like(weight), x, g, share=True)
    np.testing.assert_allclose(found, y, atol=1e-5)
    np.testing.assert_allclose(found_back, dx, atol=1e-5)
    np.testing.assert_allclose(found_weight, np.einsum("ijkk->ijk", dweight), atol=1e-4)


def test_parts_of_a_map_are_read_and_written_where_they_lie(normal):
    x, weight, out = normal(1, 3, 3, 2 * 5), normal(3, 3, 2), normal(1, 3, 3, 2 * 4)
    found = run(windows.depthwise, out, x, weight, channels=Channels(2, read=3, write=1))
    for part in range(2):
        piece = np.ascontiguousarray(x[..., 5 * part + 3 : 5 * part + 5])
        expected = run(windows.depthwise, np.zeros((1, 3, 3, 2), np.float32), piece, weight)
        np.testing.assert_allclose(found[..., 4 * part + 1 : 4 * part + 3], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[..., 4 * part], out[..., 4 * part])
        np.testing.assert_array_equal(found[..., 4 * part + 3], out[..., 4 * part + 3])


@pytest.mark.parametrize("function", ["hardswish", "gelu"])
def test_a_slope_is_that_of_its_function(function):
    x = np.arange(-6, 6, 0.19, dtype=np.float32).reshape(1, -1)  # none where hardswish bends
    slope = getattr(values, f"{function}_slope")
    found = run(norms.slope, np.zeros_like(x), x, np.ones_like(x), function=slope)
    h = 1e-2
    up, down = (getattr(values, function)(Tensor(x + sign * h)).numpy() for sign in (1, -1))
    np.testing.assert_allclose(found, (up - down) / (2 * h), atol=3e-3)


def test_the_loss_changes_as_the_gradient_says_at_an_odd_size_with_branches_dropped(normal):
    config = replace(VARIANTS["groupmixformer_nano"], num_classes=3, drop_path_rate=0.5)
    batch, size = 2, 40  # maps of 10, 5, 3 and 2 tokens a side
    arrays = state_arrays(GroupMixFormer(config, seed=0))
    state = TrainingState(config, arrays, "CPU")
    programs = Programs(config, state, batch, size, "CPU", progress=False)
    factors = draw_factors(config, batch, np.random.default_rng(1))
    assert 0 < (factors == 0).sum() < factors.size / 2
    data = normal(batch, 3, size, size), np.eye(3, dtype=np.float32)[:batch], factors
    weights = state["weights"].numpy().copy()

    def measure(weights: np.ndarray) -> tuple[float, np.ndarray]:
        state.restart(arrays)
        write_tensor(state["weights"], weights)
        return programs.gradient(1, *data), state["gradient"].numpy().copy()

    _, gradient = measure(weights)
    length = float(np.linalg.norm(gradient))
    way = gradient * np.float32(0.01 / length**2)  # the loss should change by 0.01
    up, down = (measure(weights + sign * way)[0] for sign in (1, -1))
    assert (up - down) / 0.02 == pytest.approx(1, rel=2e-3)
