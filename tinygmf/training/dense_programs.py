"""The compiled programs that train a dense network, bound to the tensors of its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.data.annotations import Annotations
from tinygmf.tensors import on_cpu, read_tensor, tensor_from_numpy, write_tensor
from tinygmf.training.dense_gradient import GRADIENTS, MaskRCNNGradient
from tinygmf.training.dense_state import DenseState
from tinygmf.training.dense_targets import TARGETS, Known, Outputs, Targets
from tinygmf.training.programs import Update, bind
from tinygmf.training.state import Devices, TrainingState

Array = np.ndarray


class DensePrograms:
    """`gradient` and `update`, as in `programs.Programs`, for the network `name` of
    `dense.networks.KINDS` on pictures of size x size pixels. They run on the CPU device."""

    def __init__(
        self,
        name: str,
        network: Any,
        state: DenseState,
        batch: int,
        size: int,
        device: Devices,
        progress: bool,
    ) -> None:
        if not on_cpu(device):
            raise ValueError(f"--device: expected CPU to train {name}, found {device}")
        self.targets: Targets = TARGETS[name](network, size)
        self.state = state
        empty = Known([Annotations()] * batch, np.random.default_rng(0))
        blocks = 2 * sum(network.config.backbone.serial_depths)
        shapes = (2,), (batch, 3, size, size), (blocks, batch)
        arrays = [np.zeros(shape, np.float32) for shape in shapes] + self.targets.arrays(empty)
        self.inputs = [tensor_from_numpy(array, str(device)) for array in arrays]
        key: dict[str, Any] = {
            "network": asdict(network.config),
            "inputs": [list(array.shape) for array in arrays],
        }
        compute = GRADIENTS[name](network.config, state.layout)
        self._gradient = bind(
            key | {"program": f"gradient of {name}"}, compute, self._all, state, progress
        )
        self._propose = None
        if isinstance(compute, MaskRCNNGradient):
            self._propose = self._proposing(compute, key, progress)
        self.update = Update(key, state, progress)

    def _proposing(self, compute: MaskRCNNGradient, key: Mapping[str, Any], progress: bool) -> Any:
        layout, scratch = self.state.layout, self.state.like()  # this step updates the statistics

        def arguments(state: TrainingState) -> list[Any]:
            weights = layout.weights.split_groups(state["weights"])
            moved = layout.statistics.split_groups(scratch["statistics"])
            return [weights, moved, *self.inputs[1:3]]

        key = dict(key) | {"program": "proposals in training"}
        return bind(key, compute.propose, arguments, self.state, progress)

    def _all(self, state: TrainingState) -> list[Any]:
        weights, statistics = state.layout.weights, state.layout.statistics
        return [
            weights.split_groups(state["weights"]),
            weights.split_groups(state["gradient"]),
            statistics.split_groups(state["statistics"]),
            state["counters"],
            *self.inputs,
        ]

    def gradient(
        self, share: float, pictures: Array, known: Known, factors: Array, scale: float = 1.0
    ) -> float:
        """Add `share` times the gradient of a batch to the state's; return the loss.

        pictures (B, 3, S, S), factors (2 * blocks, B): `draw_factors`. `scale` as in `Programs`.
        """
        shares = np.array([share / scale, scale], np.float32)
        self._write(0, [shares, pictures, factors])
        outputs = None
        if self._propose is not None:
            found: tuple[Tensor, Tensor] = self._propose()
            outputs = Outputs(*map(read_tensor, found))
        self._write(3, self.targets.arrays(known, outputs))
        return float(read_tensor(self._gradient())[0])

    def _write(self, first: int, arrays: list[Array]) -> None:
        for i, array in enumerate(arrays, first):
            write_tensor(self.inputs[i], array)
