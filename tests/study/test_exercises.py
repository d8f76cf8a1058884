"""The checks of the exercises: a right answer passes, each of its likely mistakes does not."""

import numpy as np
import pytest

from tinygmf.study.exercises import (
    check_branches,
    check_folding,
    check_receptive_field,
    check_softmax_attention,
)


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def test_softmax_attention_is_told_from_its_likely_mistakes():
    right = check_softmax_attention(lambda q, k, v: softmax(q @ k.T / 3**0.5, 1) @ v)
    assert right.startswith("right")
    for wrong in (
        lambda q, k, v: softmax(q @ k.T, 1) @ v,  # no scale
        lambda q, k, v: softmax(q @ k.T / 3**0.5, 0) @ v,  # over the queries
        lambda q, k, v: q @ (softmax(k, 0).T @ v),  # the linear form
        lambda q, k, v: (q @ k.T)[:2],
        lambda q, k, v: np.full_like(v, np.nan),
        lambda q, k, v: None,
    ):
        assert check_softmax_attention(wrong).startswith("not yet")


def branches(x, windows, heads_of_channels=True, outside=True):
    parts = []
    for part, k in zip(np.split(x, len(windows)), windows, strict=True):
        framed = np.pad(part, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        mean = np.lib.stride_tricks.sliding_window_view(framed, (k, k), (1, 2)).mean((3, 4))
        parts.append(mean if outside else part)
    mixed = np.concatenate(parts).reshape(2 * len(windows), -1, x[0].size)
    return mixed.swapaxes(1, 2) if heads_of_channels else mixed


def test_branches_are_told_from_their_likely_mistakes():
    assert check_branches(branches).startswith("right")
    for change in ({"heads_of_channels": False}, {"outside": False}):
        wrong = check_branches(lambda x, windows, c=change: branches(x, windows, **c))
        assert wrong.startswith("not yet")
    swapped = check_branches(lambda x, windows: branches(x, windows[::-1]))
    assert swapped.startswith("not yet: off by") and "(1, 5)" in swapped


def test_the_receptive_field_is_told_from_its_likely_mistakes():
    def field(layers, grow=True):
        side, step = 1, 1
        for kernel, stride in layers:
            side, step = side + (kernel - 1) * (step if grow else 1), step * stride
        return side

    assert check_receptive_field(field).startswith("right")
    assert check_receptive_field(lambda layers: field(layers, grow=False)).startswith("not yet")


@pytest.mark.parametrize("mistake", ["", "mean", "eps", "pair"])
def test_folding_is_told_from_its_likely_mistakes(mistake):
    def fold(weight, gamma, beta, mean, variance, eps):
        scale = gamma / np.sqrt(variance + (0 if mistake == "eps" else eps))
        folded = scale[:, None] * weight, beta - (0 if mistake == "mean" else scale * mean)
        return folded[0] if mistake == "pair" else folded

    assert check_folding(fold).startswith("not yet" if mistake else "right")
