"""The reference's layers agree with NumPy, and its attention with the paper's formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import gma, ops


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Convolution by its definition: one sum for each position of each output channel."""
    size = weight.shape[-1]
    pad = size // 2
    framed = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows, columns = range(0, x.shape[1], stride), range(0, x.shape[2], stride)
    return np.array(
        [
            [[(framed[:, i : i + size, j : j + size] * w).sum() for j in columns] for i in rows]
            for w in weight
        ]
    )


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
)
def test_convolution_is_the_sum_over_its_window(height, width, size, stride):
    x, weight, bias = normal(2, height, width), normal(3, 2, size, size), normal(3, seed=1)
    ours = ops.conv2d(x.tolist(), weight.tolist(), bias.tolist(), stride)
    wanted = convolve(x, weight, stride) + bias[:, None, None]
    np.testing.assert_allclose(ours, wanted, atol=1e-12)


@given(size=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3))
def test_depthwise_convolution_keeps_channels_apart(size, stride):
    x, weight = normal(3, 5, 8), normal(3, 1, size, size)
    ours = ops.depthwise_conv2d(x.tolist(), weight.tolist(), stride=stride)
    wanted = [convolve(x[c : c + 1], weight[c : c + 1], stride)[0] for c in range(3)]
    np.testing.assert_allclose(ours, wanted, atol=1e-12)


def test_linear_is_a_matrix_product():
    x, weight, bias = normal(5, 4), normal(3, 4), normal(3)
    ours = ops.linear(x.tolist(), weight.tolist(), bias.tolist())
    np.testing.assert_allclose(ours, x @ weight.T + bias)


def test_layer_norm_without_scale_gives_mean_0_and_variance_1():
    ours = np.array(ops.layer_norm((3 + 5 * normal(6, 20)).tolist(), [1.0] * 20, [0.0] * 20, 0.0))
    np.testing.assert_allclose(ours.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(ours.var(axis=1), 1)


def test_batch_norm_uses_the_running_statistics():
    x, (w, b, m), var = normal(2, 3, 4), normal(3, 2), normal(2) ** 2
    ours = ops.batch_norm(x.tolist(), *(v.tolist() for v in (w, b, m, var)), eps=0.1)
    w, b, m, var = (v[:, None, None] for v in (w, b, m, var))
    np.testing.assert_allclose(ours, (x - m) / np.sqrt(var + 0.1) * w + b)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_softmax_is_positive_and_sums_to_1(values):
    ours = ops.softmax(values)
    assert min(ours) >= 0
    assert sum(ours) == pytest.approx(1)


def test_gelu_is_the_exact_one():
    assert ops.gelu(1.0) == pytest.approx(0.8413447460685429, abs=1e-15)  # tanh's: 0.84119...
    assert ops.gelu(-2.0) == pytest.approx(-0.04550026389635842, abs=1e-15)


def test_hardswish_is_0_then_a_curve_then_the_identity():
    assert [ops.hardswish(x) for x in (-4, -3, -1, 0, 1, 3, 4)] == [0, 0, -1 / 3, 0, 4 / 6, 3, 4]


@given(st.integers(1, 6), st.integers(1, 6))
def test_tokens_laid_out_as_a_map_and_back_are_the_same_tokens(height, width):
    tokens = normal(height * width, 3).tolist()
    assert ops.to_tokens(ops.to_map(tokens, width)) == tokens


def test_joined_tokens_have_all_channels_side_by_side():
    a, b = normal(5, 2), normal(5, 3)
    assert ops.join([a.tolist(), b.tolist()]) == np.hstack([a, b]).tolist()


def test_linear_attention_equals_the_paper_s_attention_map_applied_to_the_values():
    q, k, v = normal(3, 12, 4)  # [N][head_dim] each
    softmax_k = np.exp(k) / np.exp(k).sum(axis=0)  # over the tokens
    attention_map = q @ softmax_k.T  # [N][N]
    ours = gma.attend(q.tolist(), k.tolist(), v.tolist(), scale=0.5)
    np.testing.assert_allclose(ours, 0.5 * attention_map @ v)
