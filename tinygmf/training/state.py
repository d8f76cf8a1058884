"""Every number that training changes, in a few flat tensors: one kernel then updates them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.config import STAGES
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

COUNTER = "num_batches_tracked"
RUNNING = "running_mean", "running_var"
ALIGNMENT = 16  # numbers: vector instructions need a tensor to begin at a multiple of 64 bytes


class Pieces:
    """Many arrays, by name, one behind the other in a flat one, each at an aligned start."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.room = {n: -(-size // ALIGNMENT) * ALIGNMENT for n, size in self.sizes.items()}
        ends = accumulate(self.room.values(), initial=0)
        self.starts = dict(zip(self.shapes, ends, strict=False))
        self.size = sum(self.room.values())

    def join(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The flat array, zeros in the gaps."""
        flat = np.zeros(self.size, next(iter(arrays.values())).dtype)
        for name, start in self.starts.items():
            flat[start : start + self.sizes[name]] = arrays[name].reshape(-1)
        return flat

    def split(self, flat: Any) -> dict[str, Any]:
        """The parts of a flat array or tensor: views, no copies."""
        return {
            name: flat[start : start + self.sizes[name]].reshape(self.shapes[name])
            for name, start in self.starts.items()
        }

    def join_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`join` for tensors, in groups: a kernel that picks each number from one of hundreds of
        tensors would be slow."""
        flat = [
            tensors[name].flatten().pad((0, self.room[name] - self.sizes[name]))
            for name in self.shapes
        ]
        groups = [Tensor.cat(*flat[i : i + 32]).contiguous() for i in range(0, len(flat), 32)]
        return Tensor.cat(*groups).contiguous()

    def fill(self, value: Callable[[str], float]) -> np.ndarray:
        """A flat array, float32, that holds `value(name)` throughout the piece of that name."""
        shapes = self.shapes.items()
        return self.join({name: np.full(s, value(name), np.float32) for name, s in shapes})


class Layout:
    """Which entries of a network's state dict each flat tensor holds."""

    def __init__(self, model: GroupMixFormer) -> None:
        parts: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for name, tensor in get_state_dict(model).items():
            last = name.rpartition(".")[2]
            part = 2 if last == COUNTER else 1 if last in RUNNING else 0
            parts[part][name] = tuple(map(int, tensor.shape))
        self.weights, self.statistics, self.counters = map(Pieces, parts)

    def bind(self, model: GroupMixFormer, *flat: Tensor) -> None:
        """Make the network's tensors views of flat weights, statistics and counters."""
        state = get_state_dict(model)
        for tensor, pieces in zip(
            flat, (self.weights, self.statistics, self.counters), strict=True
        ):
            for name, view in pieces.split(tensor).items():
                state[name].replace(view)


class TrainingState:
    """A network's numbers in training, by name, each a flat tensor.

    `weights`, `statistics` and `counters` are the network; `first` and `second` AdamW's averages;
    `average` and `average_statistics` the moving averages that are evaluated and saved;
    `gradient` is zero between steps. They start from `arrays`, a whole state dict.
    """

    def __init__(
        self, layout: Layout, arrays: Mapping[str, np.ndarray], device: str | None = None
    ) -> None:
        self.layout = layout
        parts = layout.weights, layout.statistics, layout.counters
        weights, statistics, counters = (pieces.join(arrays) for pieces in parts)
        zeros = np.zeros_like(weights)
        values = {
            "weights": weights,
            "gradient": zeros,
            "first": zeros,
            "second": zeros,
            "average": weights,
            "statistics": statistics,
            "counters": counters.astype(np.int64),
        }
        self.tensors = {name: tensor_from_numpy(a, device) for name, a in values.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def network(self, weights: str = "weights") -> dict[str, np.ndarray]:
        """The network's state dict; `weights` may be "average"."""
        names = weights, "statistics", "counters"
        parts = self.layout.weights, self.layout.statistics, self.layout.counters
        arrays: dict[str, np.ndarray] = {}
        for name, pieces in zip(names, parts, strict=True):
            arrays |= pieces.split(self.tensors[name].numpy())
        return arrays


def weight_decay(layout: Layout, decay: float) -> np.ndarray:
    """For every weight `decay`, or none on biases and one-dimensional tensors."""
    shapes = layout.weights.shapes
    return layout.weights.fill(lambda name: decay * (len(shapes[name]) > 1))


def rate_factors(layout: Layout, layer_decay: float, head_only: bool) -> np.ndarray:
    """For every weight the factor of its learning rate: 1 in the head and the norm before it,
    times `layer_decay` for each stage below; with `head_only` nothing but the head learns."""

    def factor(name: str) -> float:
        if head_only:
            return float(name.startswith("head."))
        if name.startswith(("head.", "norm4.")):
            return 1.0
        if name.startswith("conv_stem."):
            return layer_decay ** (STAGES + 1)
        return layer_decay ** (STAGES - int(name.split(".")[1]))

    return layout.weights.fill(factor)
