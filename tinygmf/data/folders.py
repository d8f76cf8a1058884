"""Data sets from people's folders: one folder per class, in two parts or to be split."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from tinygmf.data.archives import READERS, recognize
from tinygmf.data.dataset import DataError, Dataset, every_nth
from tinygmf.data.pictures import (
    NESTED,
    Skipped,
    class_folders,
    entries,
    is_picture,
    natural,
    pictures_below,
)
from tinygmf.files import printable
from tinygmf.image import load_image

HELD_OUT = 5  # without a validation folder, every fifth picture of each class
ASIDE = "folders left aside"
# `train2017`, `Training_Set`, `val-images`, `seg_test`: what people call the parts of a data set
PART = re.compile(
    r"(?:images?|imgs?|seg)?(?:(train(?:ing|val)?|trn)|(val(?:id(?:ation|ate)?)?|eval(?:uation)?|dev)"
    r"|(test(?:ing)?|tst))(?:set|data|images?|imgs?|split|\d+)*"
)
PARTS = "train", "val", "test"


def part_of(name: str) -> str | None:
    """ "train", "val" or "test" if a folder's name says so, in any case and spelling."""
    match = PART.fullmatch(re.sub(r"[\W_]", "", name.casefold()))
    return PARTS[match.lastindex - 1] if match and match.lastindex else None


def folder_pictures(folder: Path, seed: int = 0, exclude: Collection[Path] = ()) -> Dataset:
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg`, split by the seed.

    `exclude` lists folders to leave out, such as the current run's. Raises DataError if the folders
    do not show what the classes are, or which part is which.
    """
    if not folder.is_dir():
        what = "a file: unpack it and name" if folder.exists() else "none: check the name of"
        raise DataError(f"{folder}: expected a folder of pictures, found {what} the folder")
    exclude, skipped = {path.resolve() for path in exclude}, Skipped()
    roots = find_parts(folder, skipped) or [folder]
    places = [class_folders(root, skipped, exclude) for root in roots]
    classes = sorted({name for found in places for name in found}, key=natural)
    if not classes:
        raise DataError(f"{folder}: {_no_classes(skipped)}")
    found = [_find(place, classes, skipped, exclude) for place in places]
    if len(roots) == 1:
        found = _split(*found[0], seed)
    (train, train_labels), (val, val_labels) = found
    return Dataset(
        str(folder), classes, train, train_labels, val, val_labels, load_image, skipped=skipped
    )


def _no_classes(skipped: Skipped) -> str:
    nested = skipped.names.get(NESTED)
    if nested:
        return (
            f"expected one folder of pictures for each class, found {printable(nested[0])}, which "
            "holds only folders: name the folder that holds the classes"
        )
    found = skipped or "none"
    return f"expected one folder for each class, found {found}: sort the pictures into such folders"


def find_parts(folder: Path, skipped: Skipped) -> list[Path]:
    """The folders for training and for validation; none if the folder has no parts.

    Without a validation folder, `test` takes its place. Raises DataError if the parts are
    ambiguous, since test pictures must not end up in training.
    """
    parts: dict[str, Path] = {}
    others, inside = [], [path for path in entries(folder, Skipped()) if path.is_dir()]
    for path in inside:
        part = part_of(path.name)
        if part in parts:
            raise DataError(
                f"{folder}: expected one folder for each part, found {parts[part].name} and "
                f"{path.name}: name one of them, or remove one"
            )
        if part is None:
            others.append(path)
        else:
            parts[part] = path
    if not parts or (set(parts) == {"train"} and others and holds_pictures(parts["train"])):
        return []  # pictures of railways: a class called train, among others
    held_out = parts.get("val", parts.get("test"))
    if "train" not in parts or held_out is None:
        first, *_ = parts.values()
        raise DataError(
            f"{folder}: expected train and val, found only {printable(first.name)}: add the "
            f"other, or name {first} to have part of it held out; if it is a class, rename it"
        )
    for path in [*others, *(p for name, p in parts.items() if name == "test" and p != held_out)]:
        skipped.note(ASIDE, path)
    return [parts["train"], held_out]


def holds_pictures(folder: Path) -> bool:
    """Whether the folder itself, not one inside it, holds pictures."""
    return any(not path.is_dir() and is_picture(path) for path in entries(folder, Skipped()))


def _find(
    places: dict[str, Path], classes: Sequence[str], skipped: Skipped, exclude: Collection[Path]
) -> tuple[list[Path], np.ndarray]:
    """The pictures of each class's folder, in natural order, and their classes."""
    paths, labels = [], []
    for label, name in enumerate(classes):
        if name not in places:
            continue
        for path in pictures_below(places[name], skipped, exclude):
            _check_no_part(path, places[name])
            paths.append(path)
            labels.append(label)
    return paths, np.array(labels, np.int64)


def _check_no_part(path: Path, place: Path) -> None:
    """Raise DataError for `CLASS/test/1.jpg`, a part inside a class."""
    for name in path.relative_to(place).parts[:-1]:
        if part_of(name):
            raise DataError(
                f"{place}: expected the pictures of a class, found {name} in it, which looks like "
                "a part of the data: put the classes into train and val, or rename it"
            )


def _split(paths: list[Path], labels: np.ndarray, seed: int) -> list[tuple[list[Path], np.ndarray]]:
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    held_out[shuffled] = every_nth(labels[shuffled], HELD_OUT)
    return [
        ([path for path, chosen in zip(paths, part, strict=True) if chosen], labels[part])
        for part in (~held_out, held_out)
    ]


def open_folder(folder: Path, seed: int = 0, exclude: Collection[Path] = ()) -> Dataset:
    """The folder's pictures, or the data set whose files it holds, CIFAR-10 or Fashion-MNIST.

    Raises DataError if it is none of these.
    """
    name = recognize(folder)
    return READERS[name](folder) if name else folder_pictures(folder, seed, exclude)
