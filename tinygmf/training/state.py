"""Every number that training changes, in a few flat tensors: one kernel then updates them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.config import STAGES
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

COUNTER = "num_batches_tracked"
RUNNING = "running_mean", "running_var"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Which entries of the network's state dict each flat tensor holds, in its order."""

    weights: Shapes
    statistics: Shapes  # running means and variances
    counters: Shapes  # the number of batches that each BatchNorm has seen

    @classmethod
    def of(cls, model: GroupMixFormer) -> Layout:
        parts: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for name, tensor in get_state_dict(model).items():
            last = name.rpartition(".")[2]
            part = 2 if last == COUNTER else 1 if last in RUNNING else 0
            parts[part][name] = tuple(map(int, tensor.shape))
        return cls(*parts)


def starts(shapes: Shapes) -> list[int]:
    """Where each piece of a flat tensor begins, and where the last one ends."""
    return list(accumulate(map(math.prod, shapes.values()), initial=0))


def bind(model: GroupMixFormer, layout: Layout, *flat: Tensor) -> None:
    """Make the network's tensors views of flat weights, statistics and counters."""
    state = get_state_dict(model)
    for tensor, shapes in zip(flat, (layout.weights, layout.statistics, layout.counters)):
        for (name, shape), start in zip(shapes.items(), starts(shapes)):
            state[name].replace(tensor[start : start + math.prod(shape)].reshape(shape))


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
        weights, statistics, counters = (
            np.concatenate([np.asarray(arrays[name]).reshape(-1) for name in shapes])
            for shapes in (layout.weights, layout.statistics, layout.counters)
        )
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
        arrays = {}
        names = weights, "statistics", "counters"
        parts = self.layout.weights, self.layout.statistics, self.layout.counters
        for flat, shapes in zip(names, parts, strict=True):
            values = self.tensors[flat].numpy()
            for (name, shape), start in zip(shapes.items(), starts(shapes)):
                arrays[name] = values[start : start + math.prod(shape)].reshape(shape)
        return arrays


def weight_decay(layout: Layout, decay: float) -> np.ndarray:
    """For every weight `decay`, or none on biases and one-dimensional tensors."""
    rows = [np.full(math.prod(s), decay * (len(s) > 1)) for s in layout.weights.values()]
    return np.concatenate(rows).astype(np.float32)


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

    rows = [np.full(math.prod(s), factor(name)) for name, s in layout.weights.items()]
    return np.concatenate(rows).astype(np.float32)
