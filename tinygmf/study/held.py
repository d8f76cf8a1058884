"""Ablations that are the published network with some of its weights held where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinygmf.config import AttentionConfig
from tinygmf.tensors import write_tensor
from tinygmf.training.state import TrainingState


@dataclass(frozen=True)
class Held:
    """Weights that do not learn, by name: `free` is 1 where one learns, else 0, `values` is what it
    is held at, else 0."""

    free: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def apply(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: a * self.free[name] + self.values[name] for name, a in arrays.items()}

    def stop(self, state: TrainingState) -> None:
        """Set the learning rate of the held weights to zero. Their gradients still count in the
        norm that is clipped."""
        rates = state["rates"].numpy() * state.layout.weights.join(self.free)
        write_tensor(state["rates"], rates)


def can_be_held(attention: AttentionConfig) -> bool:
    """Whether this form equals the published one with some weights held fixed."""
    published = AttentionConfig()
    pairs = zip(attention.kernels, published.kernels, strict=True)
    smaller = all(own <= size for own, size in pairs)
    whole = replace(attention, kernels=published.kernels, cpe=True, crpe=True)
    return smaller and whole == published


def held_weights(attention: AttentionConfig, shapes: Mapping[str, tuple[int, ...]]) -> Held | None:
    """Which weights of the published form are held, and at what, to make it this ablation; None for
    an ablation that is more than that. `shapes` are those of the network's whole state dict.

    A smaller window is the published one with a rim of zeros, a position encoding of zeros is none,
    and a segment stays tokens with a window and a matrix that change nothing.
    """
    if not can_be_held(attention):
        return None
    free = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name, learns in free.items():
        for i, own in enumerate(attention.kernels, 1):
            if f".aggregator.agg{i}." in name:
                hold_window(learns, values[name], own)
        if (".cpe." in name and not attention.cpe) or (".crpe." in name and not attention.crpe):
            learns[:] = 0
    return Held(free, values)


def hold_window(learns: np.ndarray, value: np.ndarray, own: int) -> None:
    """Leave own x own places of a window, weights (D/5, 1, k, k), to learn; where that is a single
    one, neither it nor the matrix behind it, (D/5, D/5, 1, 1)."""
    rows, columns, size, _ = learns.shape
    rim = (size - own) // 2
    if own == 1:
        learns[:] = 0
        value[..., rim, rim] = np.eye(rows) if rows == columns else 1
    elif rim > 0:
        learns[:] = 0
        learns[..., rim:-rim, rim:-rim] = 1
