"""Every number that training changes, in a few flat tensors, so that one kernel updates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict
from tinygrad.uop.ops import UOp

from tinygmf.config import STAGES, GroupMixFormerConfig
from tinygmf.gma import Aggregator, ConvRelPosEnc, SeparableConv2d
from tinygmf.layers import BatchNorm, LayerNorm
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy, write_tensor

COUNTER = "num_batches_tracked"
RUNNING = "running_mean", "running_var"
Devices = str | tuple[str, ...]  # several split every batch among them
ALIGNMENT = 16  # numbers: vector instructions need a tensor to begin at a multiple of 64 bytes


class Pieces:
    """Many named arrays, one after another in a flat one.

    Weights are stored as the loop nests read them: a product's as (in, out), a convolution's as
    (k, k, in, out). Arrays that one kernel uses together form a group without gaps: `together`
    lists the groups of several, and every other array is a group of its own. The start of each
    group is aligned.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        together: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        together = together or {}
        group_of = {name: group for group, members in together.items() for name in members}
        groups = {
            group: together.get(group, [group])
            for group in (group_of.get(name, name) for name in shapes)
        }
        self.shapes = {name: shapes[name] for members in groups.values() for name in members}
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.groups: dict[str, tuple[int, int]] = {}  # start and size
        self.starts: dict[str, int] = {}
        end = 0
        for group, members in groups.items():
            start = end = -(-end // ALIGNMENT) * ALIGNMENT
            for name in members:
                self.starts[name] = end
                end += self.sizes[name]
            self.groups[group] = start, end - start
        self.size = -(-end // ALIGNMENT) * ALIGNMENT

    def join(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The flat array, zeros in the gaps."""
        flat = np.zeros(self.size, next(iter(arrays.values())).dtype)
        for name, start in self.starts.items():
            stored = arrays[name].transpose(stored_axes(arrays[name].ndim))
            flat[start : start + self.sizes[name]] = stored.reshape(-1)
        return flat

    def split(self, flat: Any) -> dict[str, Any]:
        """The parts of a flat array or tensor: views, no copies."""
        parts = {}
        for name, start in self.starts.items():
            axes, shape = stored_axes(len(self.shapes[name])), self.shapes[name]
            part = flat[start : start + self.sizes[name]].reshape([shape[axis] for axis in axes])
            back = [axes.index(axis) for axis in range(len(axes))]
            parts[name] = part.permute(back) if isinstance(part, Tensor) else part.transpose(back)
        return parts

    def split_groups(self, flat: Tensor) -> list[Tensor]:
        """The groups of a realized flat tensor: one-dimensional tensors on the same memory."""
        memory = flat.uop.base.buffer
        return [
            Tensor(UOp.from_buffer(memory.view(size, flat.dtype, start * flat.dtype.itemsize)))
            for start, size in self.groups.values()
        ]

    def join_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`join` for tensors, a few at a time: one kernel that selects each number from hundreds of
        tensors would be slow."""
        flat, end = [], 0
        for name, start in self.starts.items():
            tensor = tensors[name]
            tensor = tensor.permute(stored_axes(tensor.ndim)).flatten()
            flat.append(tensor.pad((start - end, 0)))
            end = start + self.sizes[name]
        flat[-1] = flat[-1].pad((0, self.size - end))
        groups = [Tensor.cat(*flat[i : i + 32]).contiguous() for i in range(0, len(flat), 32)]
        return Tensor.cat(*groups).contiguous()

    def fill(self, value: Callable[[str], float]) -> np.ndarray:
        """A flat float32 array that is `value(name)` throughout each named piece."""
        shapes = self.shapes.items()
        return self.join({name: np.full(s, value(name), np.float32) for name, s in shapes})


def stored_axes(ndim: int) -> tuple[int, ...]:
    """The order of a weight's axes in the flat array."""
    return {2: (1, 0), 4: (2, 3, 1, 0)}.get(ndim, tuple(range(ndim)))


def norm_groups(model: GroupMixFormer, *halves: str) -> dict[str, list[str]]:
    """For each norm its entries named by `halves`, such as weight and bias, if it has them. The
    norms of an aggregator form one group: first all first halves, then all second ones."""
    norms: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        parts = vars(module).items()
        if isinstance(module, Aggregator):
            own = [f"{name}.{part}" for part, norm in parts if isinstance(norm, BatchNorm)]
            norms |= {f"{name}.norm": own} if own else {}
        elif isinstance(module, BatchNorm | LayerNorm) and hasattr(module, halves[0]):
            norms |= {name: [name]} if f"{name.rpartition('.')[0]}.norm" not in norms else {}
    return {
        group: [f"{norm}.{half}" for half in halves for norm in members]
        for group, members in norms.items()
    }


def convolution_groups(model: GroupMixFormer) -> dict[str, list[str]]:
    """The pointwise convolutions of each aggregator, and the biases of each `crpe`."""
    groups: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Aggregator):
            own = [n for n, part in vars(module).items() if isinstance(part, SeparableConv2d)]
            pointwise = [f"{name}.{part}.pointwise_conv.weight" for part in own]
            groups |= {f"{name}.pointwise_conv": pointwise} if own else {}
        elif isinstance(module, ConvRelPosEnc):
            count = range(len(module.conv_list))
            groups[f"{name}.bias"] = [f"{name}.conv_list.{i}.bias" for i in count]
    return groups


class Layout:
    """Which entries of a network's state dict each flat tensor holds."""

    def __init__(self, model: GroupMixFormer) -> None:
        parts: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for name, tensor in get_state_dict(model).items():
            last = name.rpartition(".")[2]
            part = 2 if last == COUNTER else 1 if last in RUNNING else 0
            parts[part][name] = tuple(map(int, tensor.shape))
        together = norm_groups(model, "weight", "bias") | convolution_groups(model)
        self.weights = Pieces(parts[0], together)
        self.statistics = Pieces(parts[1], norm_groups(model, *RUNNING))
        self.counters = Pieces(parts[2], norm_groups(model, COUNTER))

    @classmethod
    def of(cls, config: GroupMixFormerConfig) -> Layout:
        return cls(GroupMixFormer(config, seed=None))

    def bind(self, model: GroupMixFormer, *flat: Tensor) -> None:
        """Make the network's tensors views of flat weights, statistics and counters."""
        state = get_state_dict(model)
        for tensor, pieces in zip(
            flat, (self.weights, self.statistics, self.counters), strict=True
        ):
            for name, view in pieces.split(tensor).items():
                state[name].replace(view)


def place(array: np.ndarray, device: Devices, axis: int | None = None) -> Tensor:
    """A realized tensor on one device; or on several, split along `axis`, or whole on each."""
    if isinstance(device, str):
        return tensor_from_numpy(array, device)
    return tensor_from_numpy(array, device[0]).shard(device, axis).realize()


class TrainingState:
    """All numbers of a network in training, as flat tensors by name.

    `weights`, `statistics` and `counters` are the network's; `first` and `second` are AdamW's
    averages; `average` and `average_statistics` are the moving averages of weights and statistics,
    which are evaluated and saved; `gradient` is zero between steps; `decay` and `rates` hold each
    weight's decay and learning-rate factor. They start from `arrays`, a complete state dict, such
    as `state_arrays` of a model.
    """

    CHANGING = (
        *("weights", "gradient", "first", "second", "average"),
        *("statistics", "average_statistics", "counters"),
    )

    def __init__(
        self,
        config: GroupMixFormerConfig,
        arrays: Mapping[str, np.ndarray],
        device: Devices,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        head_only: bool = False,
    ) -> None:
        self.layout, self.device = Layout.of(config), device
        values = self._values(arrays)
        values["decay"] = decays(self.layout.weights, weight_decay)
        values["rates"] = rate_factors(self.layout.weights, layer_decay, head_only)
        self.tensors = {name: place(a, device) for name, a in values.items()}

    def _values(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = self.layout.weights, self.layout.statistics, self.layout.counters
        weights, statistics, counters = (pieces.join(arrays) for pieces in parts)
        zeros = np.zeros_like(weights)
        changing = weights, zeros, zeros, zeros, weights, statistics, statistics
        values = *changing, counters.astype(np.int64)
        return dict(zip(self.CHANGING, values, strict=True))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def restart(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Start over from a state dict, in the same memory."""
        self.write(self._values(arrays))

    def read(self) -> dict[str, np.ndarray]:
        """Everything that changes in training."""
        return {name: self.tensors[name].numpy() for name in self.CHANGING}

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """Restore what `read` returned; on a single device, into the same memory."""
        for name in self.CHANGING:
            if isinstance(self.device, str):
                write_tensor(self.tensors[name], values[name])
            else:
                self.tensors[name] = place(values[name], self.device)

    def like(self) -> TrainingState:
        """Another state of the same shapes, all zeros."""
        other = copy(self)
        other.tensors = {
            name: place(np.zeros(tensor.shape, tensor.dtype.fmt), self.device)
            for name, tensor in self.tensors.items()
        }
        return other

    def network(self, weights: str = "weights") -> dict[str, np.ndarray]:
        """The network's state dict; `weights` may be "average", "gradient", "first", …"""
        statistics = "average_statistics" if weights == "average" else "statistics"
        names = weights, statistics, "counters"
        parts = self.layout.weights, self.layout.statistics, self.layout.counters
        arrays: dict[str, np.ndarray] = {}
        for name, pieces in zip(names, parts, strict=True):
            arrays |= pieces.split(self.tensors[name].numpy())
        return arrays


def decays(weights: Pieces, decay: float) -> np.ndarray:
    """`decay` for every weight, but 0 for biases and other one-dimensional tensors."""
    return weights.fill(lambda name: decay * (len(weights.shapes[name]) > 1))


def rate_factors(weights: Pieces, layer_decay: float, head_only: bool) -> np.ndarray:
    """Every weight's learning-rate factor: 1 for the head and the norm before it, times
    `layer_decay` for each stage below; with `head_only`, 0 for all but the head."""

    def factor(name: str) -> float:
        if head_only:
            return float(name.startswith("head."))
        if name.startswith(("head.", "norm4.")):
            return 1.0
        if name.startswith("conv_stem."):
            return layer_decay ** (STAGES + 1)
        return layer_decay ** (STAGES - int(name.split(".")[1]))

    return weights.fill(factor)
