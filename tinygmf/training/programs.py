"""The compiled programs of a run: compiled once for a network and a batch, then kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from tinygmf.config import GroupMixFormerConfig
from tinygmf.engine.launcher import Launcher
from tinygmf.engine.program_cache import load_or_compile, program_key
from tinygmf.tensors import DTYPES, on_cpu, read_tensor, write_tensor
from tinygmf.training.gradient import GradientProgram
from tinygmf.training.gradient_loops import LoopGradient
from tinygmf.training.state import Devices, TrainingState, place
from tinygmf.training.update import update


class StepPrograms(Protocol):
    """The programs of a step, whatever part is trained: `Programs` or `head.HeadPrograms`."""

    update: Update

    def gradient(
        self,
        share: float,
        pictures: np.ndarray,
        targets: np.ndarray,
        factors: np.ndarray,
        scale: float = 1.0,
    ) -> float: ...


class Programs:
    """The compiled programs of a run, bound to the tensors of its state: `gradient` and `update`.

    On the CPU device the published network runs in loop nests (`gradient_loops`); other devices and
    ablations use tinygrad's own kernels (`gradient`). Several devices split every batch among
    them; BatchNorm's statistics and the gradients are those of the whole batch.
    """

    def __init__(
        self,
        config: GroupMixFormerConfig,
        state: TrainingState,
        batch: int,
        size: int,
        device: Devices,
        progress: bool,
        dtype: str = "float32",
    ) -> None:
        if not isinstance(device, str) and batch % len(device):
            raise ValueError(
                f"--batch-size: expected a multiple of {len(device)}, the number of devices, "
                f"found {batch}"
            )
        self.state, self.loops = state, runs_in_loops(config, device)
        key = program_key(config, (batch, 3, size, size), dtype)
        self.inputs = [
            Input((2,), device),
            Input((batch, 3, size, size), device, axis=0),
            Input((batch, config.num_classes), device, axis=0),
            Input((2 * sum(config.serial_depths), batch), device, axis=1),
        ]
        kind = LoopGradient if self.loops else GradientProgram
        gradient: Callable[..., Any] = kind(config, DTYPES[dtype])
        self._gradient = bind(
            key | {"program": "gradient", "loops": self.loops},
            gradient,
            lambda state: [*self._network(state), *(x.tensor for x in self.inputs)],
            state,
            progress,
        )
        self.update = Update(key, state, progress)

    def _network(self, state: TrainingState) -> list[Any]:
        """What `gradient` reads and writes; the loop nests take each group as a separate tensor."""
        tensors = [state[name] for name in ("weights", "gradient", "statistics", "counters")]
        if not self.loops:
            return tensors
        layout = state.layout
        pieces = layout.weights, layout.weights, layout.statistics
        flat = zip(pieces, tensors[:3], strict=True)
        return [*(part.split_groups(tensor) for part, tensor in flat), tensors[3]]

    def gradient(
        self,
        share: float,
        pictures: np.ndarray,
        targets: np.ndarray,
        factors: np.ndarray,
        scale: float = 1.0,
    ) -> float:
        """Add `share` times the gradient of a batch to the state's; return the loss.

        pictures (B, 3, S, S), targets (B, classes), factors (2 * blocks, B): `draw_factors`. The
        loss is scaled by `scale` in between, to keep gradients from underflowing in float16.
        """
        shares = np.array([share / scale, scale], np.float32)
        for tensor, array in zip(self.inputs, (shares, pictures, targets, factors), strict=True):
            tensor.write(array)
        return float(read_tensor(self._gradient()[0]))


def runs_in_loops(config: GroupMixFormerConfig, device: Devices) -> bool:
    """Whether loop nests exist for this network and suit this device."""
    return on_cpu(device) and config.is_published_form


class Input:
    """A tensor that is overwritten before every run of a program; several devices split it along
    `axis`."""

    def __init__(self, shape: tuple[int, ...], device: Devices, axis: int | None = None) -> None:
        self.device, self.axis = device, axis
        self.tensor = place(np.zeros(shape, np.float32), device, axis)

    def write(self, array: np.ndarray) -> None:
        if isinstance(self.tensor.device, tuple):
            self.tensor = place(array, self.device, self.axis)
        else:
            write_tensor(self.tensor, array)


class Update:
    """AdamW's step, `update.update`, on the tensors of a state."""

    def __init__(self, key: Mapping[str, Any], state: TrainingState, progress: bool) -> None:
        names = (
            *("weights", "gradient", "first", "second", "average"),
            *("statistics", "average_statistics", "decay", "rates"),
        )
        self.schedule = Input((5,), state.device)
        self._run = bind(
            dict(key) | {"program": "update"},
            update,
            lambda state: [*(state[name] for name in names), self.schedule.tensor],
            state,
            progress,
        )

    def __call__(self, schedule: np.ndarray) -> float:
        """Take a step with the numbers of `update_schedule`; return the gradient's norm. If that is
        not finite, nothing changes."""
        self.schedule.write(schedule)
        return float(read_tensor(self._run()))


def bind(
    key: Mapping[str, Any],
    function: Callable[..., Any],
    arguments: Callable[[TrainingState], list[Any]],
    state: TrainingState,
    progress: bool,
) -> Callable[[], Any]:
    """`function`, compiled and bound to the arguments that `arguments` takes from the state."""
    spare = state.like()  # compiling runs the program once, and must not touch the state
    devices = state["weights"].device
    program = load_or_compile(
        dict(key) | {"devices": 1 if isinstance(devices, str) else len(devices)},
        function,
        *arguments(spare),
        device=devices if isinstance(devices, str) else devices[0],
        progress=progress,
    )
    if isinstance(devices, str):
        return Launcher(program, *arguments(state))
    return lambda: program(*arguments(state))
