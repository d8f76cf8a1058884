"""The state of a run on disk: all that it takes to continue as if it had never stopped."""

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
    "started",  # the command's other options
)
FREE = "epochs", "patience"  # fields of the recipe that may change when a run is resumed
STEP, MEASURE = 1, 4  # indices, in an epoch's report: the figure decides which is best
PATIENT = 100  # steps; BatchNorm's statistics alone follow a fresh network some tens of steps late


class Run(NamedTuple):
    """A run between two steps: what `Trainer.state` returns and `Trainer.restore` takes."""

    arrays: Mapping[str, np.ndarray]  # of the `TrainingState`
    about: Mapping[str, Any]  # a JSON value for each name in ABOUT
    source: str = "the run"  # its file

    def check(self, recipe: Recipe, data: Dataset) -> None:
        """Raise ValueError, in one line, if the run had another recipe or other data."""
        then, now = self.about["recipe"], asdict(recipe)
        if changed := [name for name in now if now[name] != then.get(name) and name not in FREE]:
            options = ", ".join(_as_option(name, then.get(name)) for name in changed)
            raise ValueError(f"{self.source}: expected the options of the run to resume: {options}")
        for what, found in (("classes", data.classes), ("pictures", len(data.train))):
            if self.about[what] != found:
                raise ValueError(
                    f"{self.source}: expected the {what} of the run to resume, "
                    f"{_shown(self.about[what])}, found {_shown(found)}: resume it with the data "
                    "it was started with"
                )
        made = self.about["step"] * then["epochs"] / self.about["steps"]
        if now["epochs"] < made:
            raise ValueError(
                f"{self.source}: expected at least the epochs that are done, "
                f"{made:.3g}, found --epochs {now['epochs']}: give more"
            )


def _as_option(name: str, value: Any) -> str:
    """A field of the recipe as it is written on the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"


def _shown(value: Any) -> str:
    return ", ".join(value[:10]) if isinstance(value, list) else str(value)


def best_epoch(reports: Sequence[Sequence[float]]) -> int:
    """The epoch with the best figure, counted from 1; of equal ones the last, which was trained
    longest. 0 before the first."""
    figures = [row[MEASURE] for row in reports]
    return max(range(len(figures)), key=lambda i: (figures[i], i)) + 1 if figures else 0


def has_ended(about: Mapping[str, Any]) -> bool:
    """Whether a run has taken all its steps, or the last `patience` epochs, of PATIENT steps or
    more, have not improved on the best before them; an equal figure is no improvement."""
    patience, reports = about["recipe"].get("patience"), about["reports"] or ()
    if about["step"] >= about["steps"]:
        return True
    if not (patience and reports):
        return False
    figures, steps = [row[MEASURE] for row in reports], [row[STEP] for row in reports]
    best = figures.index(max(figures))
    return len(figures) - 1 - best >= patience and steps[-1] - steps[best] >= PATIENT


def save_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run; `run.about` becomes the file's metadata.

    The file gets its name only once it is complete. Raises CheckpointError if it cannot be written,
    and leaves the previous file as it was.
    """
    write_tensors(run.arrays, path, run.about)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run. Raises CheckpointError if the file cannot be read or holds no run."""
    checkpoint = read_checkpoint(path)
    return Run(checkpoint.tensors, _checked(path, checkpoint.metadata), str(path))


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `Run.about` without the tensors. Raises CheckpointError as `load_run` does."""
    return _checked(path, read_metadata(path))


def _checked(path: str | os.PathLike[str], about: dict[str, Any]) -> dict[str, Any]:
    if any(name not in about for name in ABOUT):
        raise CheckpointError(
            f"{path}: expected a run, found only weights: name the folder of a run"
        )
    return about
