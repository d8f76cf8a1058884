"""The compiled programs of a run: compiled once for a network and a batch, then kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from tinygrad import Context, Tensor

from tinygmf.config import GroupMixFormerConfig
from tinygmf.program_cache import load_or_compile
from tinygmf.tensors import tensor_from_numpy
from tinygmf.training.state import Layout
from tinygmf.training.step import GradientProgram, update


class Programs:
    """What a run computes with: `gradient` and `update`, of the same arguments as in `step`."""

    def __init__(
        self, config: GroupMixFormerConfig, batch: int, size: int, device: str, progress: bool
    ) -> None:
        self.device = device
        program = GradientProgram(config)
        self.layout = program.layout
        key = {"network": asdict(config), "input": (batch, 3, size, size)}
        flat = self._flat(program.layout)
        pictures = self._zeros(batch, 3, size, size)
        rows = self._zeros(batch, config.num_classes)
        share = self._zeros(1)
        # A tinygrad worker that compiles would otherwise start anew after every 16 kernels.
        os.environ.setdefault("BEAM_MAX_TASKS_PER_CHILD", "100000")

        def compiled(what: str, function: Callable[..., Any], *arguments: Tensor) -> Any:
            with Context(SPEC=0):  # tinygrad's checks of itself, a third of the time
                return load_or_compile(
                    key | {"program": what}, function, *arguments, device=device, progress=progress
                )

        weights, gradient, first, second, average, decay, rates, statistics, counters = flat
        factors = self._zeros(2 * sum(config.serial_depths), batch)
        self.gradient = compiled(
            "gradient",
            program,
            *(weights, gradient, statistics, counters, share, pictures, rows, factors),
        )
        self.update = compiled(
            "update",
            update,
            *(weights, gradient, first, second, average, decay, rates, self._zeros(5)),
        )

    def _flat(self, layout: Layout) -> list[Tensor]:
        """Stand-ins for the state: compiling runs each program once, and must not touch it."""
        floats = [self._zeros(layout.weights.size) for _ in range(7)]
        counters = tensor_from_numpy(np.zeros(layout.counters.size, np.int64), self.device)
        return [*floats, self._zeros(layout.statistics.size), counters]

    def _zeros(self, *shape: int) -> Tensor:
        return tensor_from_numpy(np.zeros(shape, np.float32), self.device)
