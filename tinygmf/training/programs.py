"""The compiled programs of a run: compiled once for a network and a batch, then kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from tinygrad import Context, Tensor

from tinygmf.config import AttentionConfig, GroupMixFormerConfig
from tinygmf.launcher import Launcher
from tinygmf.predictor import DTYPES
from tinygmf.program_cache import load_or_compile
from tinygmf.tensors import tensor_from_numpy, write_tensor
from tinygmf.training.loop_step import LoopGradient
from tinygmf.training.state import TrainingState
from tinygmf.training.step import GradientProgram, update


class Programs:
    """What a run computes with, bound to the tensors of its state: `gradient` and `update`.

    On the CPU device the published network runs in loop nests (`loop_step`); any other device and
    every ablation gets tinygrad's own kernels (`step`).
    """

    def __init__(
        self,
        config: GroupMixFormerConfig,
        state: TrainingState,
        batch: int,
        size: int,
        device: str,
        progress: bool,
        dtype: str = "float32",
    ) -> None:
        self.state = state
        self.loops = device.split(":")[0] == "CPU" and config.attention == AttentionConfig()
        key = {"network": asdict(config), "input": (batch, 3, size, size), "dtype": dtype}
        shapes = (2,), (batch, 3, size, size), (batch, config.num_classes)
        shapes = *shapes, (2 * sum(config.serial_depths), batch)
        self.inputs = [tensor_from_numpy(np.zeros(s, np.float32), device) for s in shapes]
        self.schedule = tensor_from_numpy(np.zeros(5, np.float32), device)
        # A tinygrad worker that compiles would otherwise start anew after every 16 kernels.
        os.environ.setdefault("BEAM_MAX_TASKS_PER_CHILD", "100000")

        def launcher(what: str, function: Callable[..., Any], *names: str, last: list[Any]) -> Any:
            spare = state.like()  # compiling runs the program once, and must not touch the state
            with Context(SPEC=0):  # tinygrad's checks of itself, a third of the time
                program = load_or_compile(
                    key | {"program": what},
                    function,
                    *(self._arguments(spare, names) + last),
                    device=device,
                    progress=progress,
                )
            return Launcher(program, *(self._arguments(state, names) + last))

        program = LoopGradient if self.loops else GradientProgram
        gradient: Callable[..., Any] = program(config, DTYPES[dtype])
        names = "weights", "gradient", "statistics", "counters"
        self._gradient = launcher("gradient", gradient, *names, last=self.inputs)
        names = "weights", "gradient", "first", "second", "average", "decay", "rates"
        self._update = launcher("update", update, *names, last=[self.schedule])

    def _arguments(self, state: TrainingState, names: tuple[str, ...]) -> list[Any]:
        """The state's flat tensors; loop nests take each group of them apart from the others."""
        if not self.loops or "first" in names:
            return [state[name] for name in names]
        layout = state.layout
        pieces = {"weights": layout.weights, "gradient": layout.weights}
        pieces["statistics"] = layout.statistics
        return [
            pieces[name].split_groups(state[name]) if name in pieces else state[name]
            for name in names
        ]

    def gradient(
        self,
        share: float,
        pictures: np.ndarray,
        targets: np.ndarray,
        factors: np.ndarray,
        scale: float = 1.0,
    ) -> float:
        """Adds the gradient of a batch, times `share`, to the state's; returns the loss.

        pictures (B, 3, S, S), targets (B, classes), factors (2 * blocks, B): `draw_factors`.
        `scale` lifts the gradients out of the smallest numbers of float16 on their way.
        """
        shares = np.array([share / scale, scale], np.float32)
        arrays = shares, pictures, targets, factors
        for tensor, array in zip(self.inputs, arrays, strict=True):
            write_tensor(tensor, array)
        return self._gradient()[0].item()

    def update(self, schedule: np.ndarray) -> float:
        """Makes AdamW's step with `update_schedule`'s numbers; returns the gradient's norm."""
        write_tensor(self.schedule, schedule)
        return self._update().item()
