"""The state of a run on disk: everything that is needed to go on as if it had never stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from tinygmf.data.dataset import Dataset
from tinygmf.training.recipe import Recipe
from tinygmf.weights.checkpoint import write_tensors
from tinygmf.weights.reading import CheckpointError, read_checkpoint, read_metadata

ABOUT = (
    *("recipe", "classes", "pictures", "steps", "step", "scale", "losses", "seconds", "reports"),
    "started",  # the options of the command, beside the recipe
)
FREE = "epochs", "patience"  # fields of the recipe that a run may go on with otherwise
MEASURE = 4  # where an epoch's report has the figure that the best epoch is the best by


class Run(NamedTuple):
    """A run between two steps, as `Trainer.state` gives and `Trainer.restore` takes it."""

    arrays: Mapping[str, np.ndarray]  # of the `TrainingState`
    about: Mapping[str, Any]  # of each name in ABOUT, as JSON has it
    source: str = "the run"  # its file

    def check(self, recipe: Recipe, data: Dataset) -> None:
        """Raise ValueError, in one line, if this is a run by another recipe or with other data."""
        then, now = self.about["recipe"], asdict(recipe)
        if changed := [name for name in now if now[name] != then.get(name) and name not in FREE]:
            options = ", ".join(_as_option(name, then.get(name)) for name in changed)
            raise ValueError(f"{self.source}: expected the options of the run to resume: {options}")
        for what, found in (("classes", data.classes), ("pictures", len(data.train))):
            if self.about[what] != found:
                raise ValueError(
                    f"{self.source}: expected the {what} of the run to resume, "
                    f"{_shown(self.about[what])}, found {_shown(found)}: resume it with the data "
                    "that it was started with"
                )
        made = self.about["step"] * then["epochs"] / self.about["steps"]
        if now["epochs"] < made:
            raise ValueError(
                f"{self.source}: expected at least the epochs that the run has made, "
                f"{made:.3g}, found --epochs {now['epochs']}: give more"
            )


def _as_option(name: str, value: Any) -> str:
    """How a field of the recipe is given on the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"


def _shown(value: Any) -> str:
    return ", ".join(value[:10]) if isinstance(value, list) else str(value)


def best_epoch(reports: Sequence[Sequence[float]]) -> int:
    """The epoch, from 1, whose figure no other exceeds: of equals the last, which was trained
    longest. 0 before there is any."""
    figures = [row[MEASURE] for row in reports]
    return max(range(len(figures)), key=lambda i: (figures[i], i)) + 1 if figures else 0


def has_ended(about: Mapping[str, Any]) -> bool:
    """Whether a run has made all its steps, or `patience` epochs in a row that are no better than
    one before them; an equal one is not better."""
    patience, reports = about["recipe"].get("patience"), about["reports"] or ()
    figures = [row[MEASURE] for row in reports]
    waited = len(figures) - 1 - figures.index(max(figures)) if figures else 0
    return about["step"] >= about["steps"] or (bool(patience) and waited >= patience)


def save_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run; what it is about becomes the file's metadata.

    The file takes its name only when it is complete. Raises CheckpointError if it cannot be
    written; what was there stays.
    """
    write_tensors(run.arrays, path, run.about)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run. Raises CheckpointError if the file cannot be read or is no run."""
    checkpoint = read_checkpoint(path)
    return Run(checkpoint.tensors, _checked(path, checkpoint.metadata), str(path))


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a run is about, and none of its tensors. Raises CheckpointError as `load_run`."""
    return _checked(path, read_metadata(path))


def _checked(path: str | os.PathLike[str], about: dict[str, Any]) -> dict[str, Any]:
    if any(name not in about for name in ABOUT):
        raise CheckpointError(
            f"{path}: expected a run, found weights alone: name the folder of a run"
        )
    return about
