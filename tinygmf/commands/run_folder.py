"""The folder of a training run: what may be written there, who writes, and which run it holds."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tinygmf.data.folders import holds_pictures
from tinygmf.data.pictures import LOCK, is_run
from tinygmf.training.run_file import FURTHER, read_about
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
    place = folder or out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written: {error.strerror}: choose another place"
        ) from None


def check_no_pictures(folder: Path) -> None:
    """Raises ValueError for a folder of pictures, a class's say: a run needs one of its own."""
    if folder.is_dir() and not is_run(folder) and holds_pictures(folder):
        raise ValueError(
            f"--out {folder}: expected a folder of its own for the run, found pictures in it: "
            "choose another"
        )


def check_nothing_lost(folder: Path) -> None:
    """Raises ValueError where a new run would replace one, finished or not, or its network."""
    if (folder / RUN).exists():
        with contextlib.suppress(CheckpointError):  # a file that no run could resume from
            about = read_about(folder / RUN)
            if about["step"] < about["steps"]:
                raise ValueError(
                    f"{folder}: expected no unfinished run, found one that stopped after step "
                    f"{about['step']} of {about['steps']}: add --resume to go on with it, give "
                    f"another --out, or remove {folder / RUN}"
                )
    if (folder / WEIGHTS).exists():
        raise ValueError(
            f"{folder}: expected no finished run, found {WEIGHTS} of one: {FURTHER}, or remove it"
        )


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
