"""The folder of a training run: what may be written there, who writes, and which run it holds.

A run's file records the options it was started with, so its folder is enough to resume it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from tinygmf.data.folders import holds_pictures
from tinygmf.data.pictures import LOCK, is_run
from tinygmf.training.run_file import has_ended, read_about
from tinygmf.weights.checkpoint import WRITERS, CheckpointError
from tinygmf.weights.reading import NETWORK, RUN

WEIGHTS, BEST, CLASSES = NETWORK, "best.safetensors", "classes.txt"
STARTED = (  # options kept in a run's file, besides the recipe
    *("data", "recipe", "model", "weights", "entry", "num_classes", "task", "head", "channels"),
    "device",
)
MOVABLE = "data", "device"  # those that may change when it is resumed


def usual_folder(data: str, resuming: bool = False) -> Path:
    """`runs/NAME`, or `runs/NAME-2` and so on: the first without a finished run; when resuming,
    the last that exists."""
    name = Path(data).resolve().name
    folders = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in count(1))
    if resuming:
        return ([*takewhile(Path.is_dir, folders)] or [Path("runs") / name])[-1]
    return next(folder for folder in folders if not holds_finished(folder))


def holds_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    if not (folder / RUN).exists():
        return (folder / WEIGHTS).exists()
    try:
        return has_ended(read_about(folder / RUN))
    except CheckpointError:  # a file that no run could resume from
        return (folder / WEIGHTS).exists()


def started_with(args: argparse.Namespace) -> dict[str, Any]:
    """A command's options as its run's file keeps them: with absolute paths."""
    kept = {name: getattr(args, name) for name in STARTED}
    for name in ("data", "weights"):
        if kept[name] is not None:
            path = os.fspath(kept[name])
            kept[name] = os.path.abspath(path) if os.path.exists(path) else path
    return kept


def recall(args: argparse.Namespace) -> dict[str, Any] | None:
    """The metadata of the run that --resume names, None for a new run. Options that were not given
    are set in `args` to those it was started with.

    Raises ValueError if there is no such run, or if a given option differs from the run's.
    """
    if args.resume is None:
        if args.data is None:
            raise ValueError("DATA: expected a folder of pictures, found none: name it")
        return None
    if not args.resume and not args.out and args.data is None:
        raise ValueError("--resume: expected the folder of a run, found none: name it")
    folder = Path(args.resume) if args.resume else args.out or usual_folder(args.data, True)
    folder = folder.parent if folder.name == RUN else folder
    if args.out is not None and args.out.resolve() != folder.resolve():
        raise ValueError(f"--out: expected {folder}, the run to resume, found {args.out}")
    if folder.suffix in WRITERS:
        raise ValueError(f"--resume: expected the folder of a run, found {folder}: name it")
    if not (folder / RUN).exists():
        raise ValueError(
            f"--resume: expected a run in {folder}, found none: leave --resume out to start one"
        )
    args.out = folder
    about = read_about(folder / RUN)
    _take_options(args, about["started"] or {}, folder)
    return about


def _take_options(args: argparse.Namespace, then: Mapping[str, Any], folder: Path) -> None:
    now = started_with(args)
    for name, value in then.items():
        if now[name] is None:
            setattr(args, name, value)
        elif now[name] != value and name not in MOVABLE:
            option = f"--{name.replace('_', '-')}"
            was = f"{option} {value}" if value is not None else f"no {option}"
            raise ValueError(
                f"{folder}: expected the options of the run to resume: {was}: leave it out"
            )


def check_out(out: Path, folder: Path | None) -> None:
    """Raise ValueError if --out cannot hold the result, before time is spent on it.

    `folder` is the run's, or None if --out names a file for the trained network alone.
    """
    if folder is None and out.is_dir():
        raise ValueError(f"--out {out}: expected a file name, found a folder: choose another")
    if folder is None and out.exists():
        raise ValueError(
            f"--out {out}: expected no file, found one: remove it, or choose another name"
        )
    place = folder or out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written: {error.strerror}: choose another path"
        ) from None


def check_no_pictures(folder: Path) -> None:
    """Raise ValueError for a folder of pictures, a class's say: a run needs a separate one."""
    if folder.is_dir() and not is_run(folder) and holds_pictures(folder):
        raise ValueError(
            f"--out {folder}: expected a separate folder for the run, found pictures in it: "
            "choose another"
        )


def check_nothing_lost(folder: Path) -> None:
    """Raise ValueError if a new run would overwrite one, finished or not, or its network."""
    if holds_finished(folder):
        raise ValueError(
            f"{folder}: expected no finished run, found {WEIGHTS} of one: give another --out; "
            f"`tinygmf train --resume {folder} --epochs N` makes that run longer"
        )
    if (folder / RUN).exists():
        with contextlib.suppress(CheckpointError):  # a file that no run could resume from
            about = read_about(folder / RUN)
            raise ValueError(
                f"{folder}: expected no unfinished run, found one that stopped after step "
                f"{about['step']} of {about['steps']}: `tinygmf train --resume {folder}` "
                f"continues it; or give another --out, or remove {folder / RUN}"
            )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process; ValueError if another process holds it.

    The system releases the lock when the process ends, however it ends; the file stays.
    """
    with open(folder / LOCK, "a+") as file:
        try:
            _lock(file.fileno())
        except OSError:
            raise ValueError(
                f"{folder}: expected no run in progress, found one in another process: "
                "wait for it, or give another --out"
            ) from None
        yield


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not passed on to forked workers
