"""The state of a run on disk: everything that is needed to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygmf.training.state import TrainingState
from tinygmf.weights.checkpoint import CheckpointError, read_tensors, write_tensors

ABOUT = "about"  # the entry that holds everything but numbers, as JSON


def save_run(
    path: str | os.PathLike[str], state: TrainingState, step: int, about: Mapping[str, Any]
) -> None:
    """Write the run after `step` steps; `about` is saved with it, as JSON.

    The file takes its name only when it is complete. Raises CheckpointError if it cannot be
    written; what was there stays.
    """
    text = json.dumps({**about, "step": step}).encode()
    write_tensors(state.read() | {ABOUT: np.frombuffer(text, np.uint8)}, path)


def load_run(path: str | os.PathLike[str], state: TrainingState) -> dict[str, Any]:
    """Give `state` the numbers of a saved run; returns what `save_run` was told, and its step.

    Raises CheckpointError if the file is no saved run, or is that of another network.
    """
    about, arrays = _read_run(path)
    expected = {name: tuple(state[name].shape) for name in state.CHANGING}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise CheckpointError(
            f"{path}: expected a run of this very network, found another one's: resume with the "
            "options that the run was started with"
        )
    state.write(arrays)
    return about


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_run` was told, and its step. Raises CheckpointError if the file is no run."""
    return _read_run(path)[0]


def _read_run(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    arrays = read_tensors(path)
    if ABOUT not in arrays:
        raise CheckpointError(
            f"{path}: expected a run, found weights alone: name the folder of a run in --out"
        )
    return json.loads(arrays.pop(ABOUT).tobytes()), arrays
