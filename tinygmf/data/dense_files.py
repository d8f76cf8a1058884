"""Finding files as annotated data sets lay them out: pictures, what belongs to them, the split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinygmf.data import pictures
from tinygmf.data.annotations import BACKGROUND
from tinygmf.data.dataset import DataError

PICTURE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit"}
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAME_FILES = "classes.txt", "labels.txt", "class_names.txt", "obj.names", "objectInfo150.txt"
MOST_BYTES = 2**24  # of a file of text about one picture, or of names
HELD_OUT = 5  # where nothing says what to validate on, every fifth picture is held out
Item = TypeVar("Item")


def read_bytes(file: Path) -> bytes:
    """A small file. Raises DataError, which names it."""
    try:
        if not os.path.isfile(file):
            raise OSError("none")
        if file.stat().st_size > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: expected a small file, found {error.strerror or error}") from None


def read_text(file: Path) -> str:
    """A small file of text. Raises DataError, which names it."""
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected text in UTF-8, found {error.reason}") from None


def pictures_below(folder: Path) -> list[Path]:
    """In natural order of their names."""
    return list(pictures.pictures_below(folder, pictures.PassedOver()))


def partners(
    file: Path, own: Collection[str], others: Sequence[str], endings: Sequence[str]
) -> list[Path]:
    """Where the file that belongs to another may be: `a/images/train/x.jpg`, whose folder is one
    of its `own`, has its mask at `a/masks/train/x.png`, if that is one of the `others`, or beside
    it."""
    ways = [file.parent]
    for place in range(len(file.parts) - 2, -1, -1):
        if file.parts[place].lower() in own:
            before, after = file.parts[:place], file.parts[place + 1 : -1]
            ways = [*(Path(*before, folder, *after) for folder in others), file.parent]
            break
    return [way / (file.stem + ending) for way in ways for ending in endings]


def class_names(root: Path) -> list[str]:
    """The names in a file of classes, one a line, or ADE20K's table of them; none without it.

    The file is in the folder itself, or as labelling tools write it, beside the labels.
    """
    for name in NAME_FILES:
        for file in (*root.glob(name), *root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")):
            lines = [line.strip() for line in read_text(file).splitlines()]
            if name == "objectInfo150.txt":  # its last column, below a head
                lines = [line.rpartition("\t")[2] for line in lines[1:]]
            return [line for line in lines if line]
    return []


def with_background(names: list[str]) -> list[str]:
    """The background, under one name, and then the classes of objects."""
    return [BACKGROUND, *names[int(names[:1] in ([BACKGROUND], ["__background__"])) :]]


def part_of(path: Path, root: Path) -> str | None:
    """Whether a path below `root` says train, val or test; the last such word counts."""
    words = re.findall("[a-z]+", str(path.relative_to(root)).lower())
    return next((PARTS[word] for word in reversed(words) if word in PARTS), None)


def by_parts(items: Iterable[Item], parts: Iterable[str | None]) -> tuple[list[Item], list[Item]]:
    """What says train, and what says val, or test where none says val."""
    found: dict[str | None, list[Item]] = {}
    for item, part in zip(items, parts, strict=True):
        found.setdefault(part, []).append(item)
    return found.get("train", []), found.get("val") or found.get("test", [])


def split_by_folder(
    items: Sequence[Item], paths: Sequence[Path], root: Path, seed: int
) -> tuple[list[Item], list[Item]]:
    """Items as the folders of their paths say, else a fifth is held out."""
    train, val = by_parts(items, [part_of(path.parent, root) for path in paths])
    return (train, val) if train and val else split(items, seed)


def listed(root: Path, kind: str) -> dict[str, str]:
    """The part, train or val, of each name in Pascal VOC's `ImageSets/KIND/train.txt` and so on."""
    parts: dict[str, str] = {}
    for folder in (*root.glob(f"ImageSets/{kind}"), *root.glob(f"*/ImageSets/{kind}")):
        names = ("train", "val") if (folder / "val.txt").is_file() else ("trainval", "test")
        for name, part in zip(names, ("train", "val"), strict=True):
            if (folder / f"{name}.txt").is_file():
                parts |= dict.fromkeys(read_text(folder / f"{name}.txt").split(), part)
    return parts if set(parts.values()) == {"train", "val"} else {}


def split(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Every fifth, in an order of the seed's, is held out."""
    order = np.random.RandomState(seed).permutation(len(items))
    chosen = np.zeros(len(items), bool)
    chosen[order[::HELD_OUT]] = True
    pairs = list(zip(items, chosen, strict=True))
    return [item for item, held in pairs if not held], [item for item, held in pairs if held]
