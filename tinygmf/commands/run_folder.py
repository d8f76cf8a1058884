"""The folder of a training run: what may be written there, who writes, and which run it holds."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinygmf.data.folders import holds_pictures
from tinygmf.data.pictures import LOCK, is_run
from tinygmf.training.recipe import Recipe
from tinygmf.training.run_file import read_about
from tinygmf.weights.checkpoint import CheckpointError

WEIGHTS, RUN, CLASSES = "model.safetensors", "run.safetensors", "classes.txt"


def check_out(out: Path, folder: Path | None, resuming: bool) -> None:
    """Raises ValueError for an --out that cannot take the result, before time goes into it.

    `folder` is the run's, or None where --out names the file of the trained network alone.
    """
    if resuming and folder is None:
        raise ValueError(f"--resume: expected the folder of a run in --out, found {out}: name it")
    if resuming and not (out / RUN).exists():
        raise ValueError(
            f"--resume: expected a run in {out}, found none: leave --resume out to start one"
        )
    if folder is None and out.is_dir():
        raise ValueError(f"--out {out}: expected a file's name, found a folder: choose another")
    if folder is None and out.exists():
        raise ValueError(
            f"--out {out}: expected no file, found one: remove it, or choose another name"
        )
    if folder and folder.is_dir() and not is_run(folder) and holds_pictures(folder):
        raise ValueError(
            f"--out {out}: expected a folder of its own for the run, found pictures in it: choose "
            "another"
        )
    place = folder or out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written: {error.strerror}: choose another place"
        ) from None


def check_nothing_lost(folder: Path) -> None:
    """Raises ValueError where a new run would replace one, finished or not, or its network."""
    if (folder / RUN).exists():
        with contextlib.suppress(CheckpointError):  # what cannot be read cannot be gone on with
            about = read_about(folder / RUN)
            if about["step"] < about.get("steps", 0):
                raise ValueError(
                    f"{folder}: expected no unfinished run, found one that stopped after step "
                    f"{about['step']} of {about['steps']}: add --resume to go on with it, give "
                    f"another --out, or remove {folder / RUN}"
                )
    if (folder / WEIGHTS).exists():
        raise ValueError(
            f"{folder}: expected no finished run, found {WEIGHTS} of one: {go_on(folder)}, or "
            "remove it"
        )


def go_on(folder: Path) -> str:
    """How to train a finished run's network further."""
    return f"give another --out, with --weights {folder / WEIGHTS} to train that network further"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run's folder for this process: ValueError where another one has it.

    The system takes the lock away from a process that ends, however it ends; the file stays.
    """
    with open(folder / LOCK, "a+") as file:
        try:
            _lock(file.fileno())
        except OSError:
            raise ValueError(
                f"{folder}: expected a folder of its own for the run, found that another process "
                "trains in it: wait for it, or give another --out"
            ) from None
        yield


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not passed on to forked workers


def same_run(folder: Path, recipe: Recipe, data: Any) -> None:
    """Raises ValueError if the run in this folder has another recipe, or other data."""
    about = read_about(folder / RUN)
    then, now = about["recipe"], asdict(recipe)
    if changed := [name for name in now if now[name] != then.get(name)]:
        if changed == ["epochs"] and about["step"] >= about.get("steps", math.inf):
            raise ValueError(
                f"{folder}: expected an unfinished run to resume, found one that has ended, after "
                f"{then['epochs']} epochs: {go_on(folder)}"
            )
        options = ", ".join(as_option(name, then.get(name)) for name in changed)
        raise ValueError(f"{folder}: expected the options of the run to resume: {options}")
    for what, found in (("classes", data.classes), ("pictures", len(data.train))):
        if about[what] != found:
            raise ValueError(
                f"{folder}: expected the {what} of the run to resume, {shown(about[what])}, found "
                f"{shown(found)}: resume it with the data that it was started with"
            )


def as_option(name: str, value: Any) -> str:
    """How a field of the recipe is given on the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"


def shown(value: Any) -> str:
    return ", ".join(value[:10]) if isinstance(value, list) else str(value)
