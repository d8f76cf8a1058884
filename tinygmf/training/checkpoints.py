"""The state of a run on disk: everything that is needed to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygmf.checkpoint import CheckpointError, read_tensors, write_tensors
from tinygmf.training.state import TrainingState

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
    arrays = read_tensors(path)
    expected = {name: tuple(state[name].shape) for name in state.CHANGING}
    found = {name: array.shape for name, array in arrays.items() if name != ABOUT}
    if ABOUT not in arrays or found != expected:
        raise CheckpointError(
            f"{path}: expected a run of this very network, found another file: resume with the "
            "options that the run was started with"
        )
    state.write(arrays)
    return json.loads(arrays[ABOUT].tobytes())
