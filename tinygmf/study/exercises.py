"""Checks for the notebooks' exercises: each calls a reader's function and says whether it is right.

A check compares with a plain form of the definition, on numbers that the reader has not seen. It
returns one line: "right: …", or "not yet: …" with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
CLOSE = 1e-6


def check_softmax_attention(function: Callable[[Array, Array, Array], Array]) -> str:
    """`function(q, k, v)`, three of (N, head_dim), is softmax(QKᵀ / √head_dim) V."""
    q, k, v = np.random.default_rng(1).normal(size=(3, 5, 3))
    expected = np.empty_like(q)
    for i, query in enumerate(q):
        weights = np.exp([np.dot(query, key) / 3**0.5 for key in k])
        expected[i] = (weights[:, None] * v).sum(0) / weights.sum()
    return verdict(function(q, k, v), expected)


def check_branches(function: Callable[[Array, Sequence[int]], Array]) -> str:
    """`function(x, windows)` splits a map x (C, H, W) into one segment of channels per window,
    replaces each by its averages over windows of that size, counting places outside as zeros, and
    returns two heads of each: (2 * len(windows), H * W, head_dim)."""
    x = np.random.default_rng(2).normal(size=(12, 5, 4))
    for windows in ((1, 5), (1, 3, 5)):
        segments = x.reshape(len(windows), -1, 5, 4)  # (windows, channels, H, W)
        pooled = [averages(part, k) for part, k in zip(segments, windows, strict=True)]
        heads = np.concatenate(pooled).reshape(2 * len(windows), -1, 20)  # (heads, head_dim, N)
        found = verdict(function(x.copy(), windows), heads.swapaxes(1, 2), f"windows {windows}")
        if not found.startswith("right"):
            return found
    return found


def averages(x: Array, size: int) -> Array:
    """Averages over size x size places, zero outside the map: (C, H, W) -> the same."""
    result, rim = np.zeros_like(x), size // 2
    for c, i, j in np.ndindex(*x.shape):
        rows = slice(max(i - rim, 0), i + rim + 1)
        result[c, i, j] = x[c, rows, max(j - rim, 0) : j + rim + 1].sum() / size**2
    return result


def check_receptive_field(function: Callable[[Sequence[tuple[int, int]]], int]) -> str:
    """`function(layers)` is the side, in pixels, of what one place sees through convolutions with
    (kernel size, stride), first to last."""
    for layers in (((3, 2), (3, 2)), ((3, 1), (7, 2), (1, 2), (5, 1)), ()):
        first, last = 0, 0  # what output 0 sees, traced back from layer to layer
        for kernel, stride in reversed(layers):
            first, last = first * stride - kernel // 2, last * stride + kernel // 2
        found = verdict(function(layers), np.asarray(last - first + 1), f"layers {layers}")
        if not found.startswith("right"):
            return found
    return found


def check_folding(function: Callable[..., tuple[Array, Array]]) -> str:
    """`function(weight, gamma, beta, mean, variance, eps)` folds a BatchNorm into the linear layer
    before it, weight (out, in), and returns the weight and bias of a layer that does both."""
    rng = np.random.default_rng(3)
    weight, x = rng.normal(size=(4, 6)), rng.normal(size=(7, 6))
    gamma, beta, mean = rng.normal(size=(3, 4))
    variance, eps = rng.uniform(0.5, 2, 4), 1e-2
    expected = gamma * (x @ weight.T - mean) / np.sqrt(variance + eps) + beta
    folded = function(weight.copy(), gamma, beta, mean, variance, eps)
    if not isinstance(folded, tuple) or len(folded) != 2:
        return f"not yet: expected a weight and a bias, found {type(folded).__name__}"
    return verdict(x @ np.asarray(folded[0]).T + folded[1], expected)


def verdict(found: Any, expected: Array, case: str = "") -> str:
    """Say in one line whether a function returned what was expected."""
    where = f" for {case}" if case else ""
    if found is None:
        return f"not yet: the function returned None{where}"
    found = np.asarray(found)
    if found.shape != expected.shape:
        return f"not yet: expected shape {expected.shape}, found {found.shape}{where}"
    difference = np.abs(found - expected).max()
    if not difference <= CLOSE:  # catches NaN too
        return f"not yet: off by up to {difference:.2g}{where}"
    return f"right: off by no more than {difference:.0e}, which is rounding"
