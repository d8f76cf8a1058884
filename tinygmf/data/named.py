"""What a command's DATA means: the name of a data set, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.data.archives import fetch_cifar10, fetch_fashion_mnist, recognize
from tinygmf.data.classes import ClassIndex
from tinygmf.data.dataset import DataError, Dataset
from tinygmf.data.digits import digits
from tinygmf.data.folders import open_folder
from tinygmf.data.scenes import scene_photographs, scene_shapes
from tinygmf.data.shapes import shapes
from tinygmf.files import printable

NAMED: dict[str, Callable[[int], Dataset]] = {  # by the size to train on
    "digits": lambda size: digits(),
    "shapes": shapes,
    "cifar10": lambda size: fetch_cifar10(),
    "fashion-mnist": lambda size: fetch_fashion_mnist(),
    "scenes-photograph": lambda size: scene_photographs(),
    "scenes-shape": lambda size: scene_shapes(),
}


def known_as(data: str) -> str | None:
    """The name of the data set that this is, or whose files the folder holds.

    Raises DataError for a folder with files of CIFAR-10's Python version.
    """
    return data if data in NAMED else recognize(Path(data))


def is_data_set(path: Path) -> bool:
    """Whether this is a folder of a data set's files, or a data set's name and no folder."""
    return bool(recognize(path) if path.is_dir() else str(path) in NAMED)


def open_data(data: str, size: int, seed: int = 0, exclude: Collection[Path] = ()) -> Dataset:
    """The data set of this name, or what the folder holds: see `folders.open_folder`. Shapes are
    drawn in `size` pixels.

    Raises DataError if it is neither, or damaged.
    """
    if data in NAMED:
        return NAMED[data](size)
    if not Path(data).exists():
        raise DataError(
            f"{data}: expected {', '.join(NAMED)} or a folder of pictures, found no such "
            "folder: check the name"
        )
    return open_folder(Path(data), seed, exclude)


def measured_pictures(
    data: Dataset, names: Sequence[str]
) -> tuple[list[tuple[int, int]], Callable[[int], Image.Image]]:
    """What a network is measured on: the test pictures, or without them the held-out ones. Returns
    their numbers with their classes, numbered as in the network's `names`, and a function that
    loads a picture by its number.

    Raises ValueError if the network does not know one of the classes.
    """
    index = ClassIndex(names, numbers=False)  # the digit 3 is not the garment with that number
    classes = np.array([_known(name, index, data.name) for name in data.classes])
    tested = bool(data.test)
    sources, labels = (data.test, data.test_labels) if tested else (data.val, data.val_labels)
    return list(enumerate(map(int, classes[labels]))), lambda number: data.load(sources[number])


def _known(name: str, index: ClassIndex, data: str) -> int:
    """The network's number of a data set's class."""
    if (found := index(name)) is None:
        raise ValueError(
            f"{data}: expected the network's {len(index.names)} classes ({index}), found "
            f"{printable(name)!r}: choose other weights or other data, or name the network's "
            "classes with --classes"
        )
    return found
