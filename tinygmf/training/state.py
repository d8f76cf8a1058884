"""Every number that training changes, in a few flat tensors: one kernel then updates them all.

The network's own tensors are views into them, so the network is up to date after every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.layers import BatchNorm
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

COUNTER = "num_batches_tracked"
RUNNING = "running_mean", "running_var"


@dataclass(frozen=True)
class Layout:
    """Which piece of which flat tensor each entry of the network's state dict is."""

    weights: dict[str, tuple[int, ...]]  # name -> shape, in the order of the flat tensor
    statistics: dict[str, tuple[int, ...]]  # running means and variances
    counters: dict[str, tuple[int, ...]]  # batches seen by each BatchNorm

    @classmethod
    def of(cls, model: GroupMixFormer) -> Layout:
        parts: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for name, tensor in get_state_dict(model).items():
            last = name.rpartition(".")[2]
            part = 2 if last == COUNTER else 1 if last in RUNNING else 0
            parts[part][name] = tuple(map(int, tensor.shape))
        return cls(*parts)


def pieces(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The views of a flat tensor under their names."""
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return views


class TrainingState:
    """A network's weights, BatchNorm statistics and counters, and AdamW's two averages.

    `decay` and `rate` hold, weight by weight, the weight decay and the factor of the learning
    rate; they do not change.
    """

    NAMES = "weights", "first", "second", "statistics", "counters", "decay", "rate"

    def __init__(self, model: GroupMixFormer, weight_decay: float, device: str | None = None) -> None:
        self.model, self.layout = model, Layout.of(model)
        values = {name: tensor.numpy() for name, tensor in get_state_dict(model).items()}
        shapes = self.layout.weights

        def flat(parts: Mapping[str, tuple[int, ...]]) -> np.ndarray:
            return np.concatenate([values[name].reshape(-1) for name in parts])

        weights = flat(shapes)
        self.tensors = {
            name: tensor_from_numpy(array, device)
            for name, array in {
                "weights": weights,
                "first": np.zeros_like(weights),
                "second": np.zeros_like(weights),
                "statistics": flat(self.layout.statistics),
                "counters": flat(self.layout.counters),
                "decay": np.concatenate(
                    [np.full(math.prod(s), weight_decay * (len(s) > 1)) for s in shapes.values()]
                ).astype(np.float32),
                "rate": np.ones_like(weights),
            }.items()
        }
        bind(model, self.layout, *(self.tensors[n] for n in ("weights", "statistics", "counters")))

    def arguments(self) -> list[Tensor]:
        return [self.tensors[name] for name in self.NAMES]


def bind(model: GroupMixFormer, layout: Layout, *flat: Tensor) -> None:
    """Makes the network's tensors views of the flat weights, statistics and, if given, counters."""
    views: dict[str, Tensor] = {}
    for tensor, shapes in zip(flat, (layout.weights, layout.statistics, layout.counters)):
        views |= pieces(tensor, shapes)
    for name, tensor in get_state_dict(model).items():
        if name in views:
            tensor.replace(views[name])


def norms(model: GroupMixFormer) -> dict[str, BatchNorm]:
    """Every BatchNorm by its name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, BatchNorm)}
