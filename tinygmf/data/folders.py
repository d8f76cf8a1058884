"""Pictures from files: folders with one folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinygmf.data.archives import recognise
from tinygmf.data.dataset import DataError, Dataset
from tinygmf.data.evaluation import PICTURES
from tinygmf.image import load_image

HELD_OUT = 5  # without a folder `val`, every fifth picture of each class is held out


def folder_pictures(folder: Path, seed: int = 0) -> Dataset:
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg`, split by the seed.

    Raises DataError where the folders do not say what the classes are.
    """
    if not folder.is_dir():
        what = "a file: unpack it and name" if folder.exists() else "none: check the name of"
        raise DataError(f"{folder}: expected a folder of pictures, found {what} the folder")
    parts = [path for path in (folder / "train", folder / "val") if path.is_dir()]
    if len(parts) == 1:
        raise DataError(
            f"{folder}: expected train and val, found {parts[0].name} alone: add the other, or "
            f"name {parts[0]}, to have part of it held out"
        )
    roots = parts or [folder]
    classes = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()})
    if not classes:
        raise DataError(f"{folder}: expected one folder for each class, found none: make them")
    found = [_find(root, classes) for root in roots]
    if not parts:
        found = _split(*found[0], seed)
    (train, train_labels), (val, val_labels) = found
    return Dataset(str(folder), classes, train, train_labels, val, val_labels, load_image)


def _find(root: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """The pictures below a folder, in the order of their names, and their classes."""
    pairs = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in PICTURES
    ]
    return [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)


def _split(paths: list[Path], labels: np.ndarray, seed: int) -> list[tuple[list[Path], np.ndarray]]:
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of each picture within its class
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    held_out = rank % HELD_OUT == 0
    return [
        ([path for path, chosen in zip(paths, part, strict=True) if chosen], labels[part])
        for part in (~held_out, held_out)
    ]


def open_folder(folder: Path, seed: int = 0) -> Dataset:
    """Whatever the folder holds: pictures, or the files of CIFAR-10 or Fashion-MNIST.

    Raises DataError where it is none of these.
    """
    reader = recognise(folder)
    return reader(folder) if reader else folder_pictures(folder, seed)
