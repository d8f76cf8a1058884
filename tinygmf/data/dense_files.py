"""Finding the files of annotated data sets: pictures, the files that belong to them, the split."""

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
from tinygmf.image import picture_suffixes

PICTURE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit"}
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAME_FILES = "classes.txt", "labels.txt", "class_names.txt", "obj.names", "objectInfo150.txt"
MOST_BYTES = 2**24  # of a text file about one picture, or of class names
HELD_OUT = 5  # if nothing defines a validation part, every fifth picture is held out
Item = TypeVar("Item")


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """Read a small file. Raises DataError, which names it."""
    try:
        if not os.path.isfile(file):
            raise OSError("a folder or device" if os.path.exists(file) else "none")
        if file.stat().st_size > most:
            raise OSError(f"more than {most:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: expected a small file, found {error.strerror or error}") from None


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    """Read a small text file. Raises DataError, which names it."""
    try:
        return read_bytes(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected text in UTF-8, found {error.reason}") from None


def pictures_below(folder: Path) -> list[Path]:
    """The pictures below a folder, in natural order of their names."""
    return list(pictures.pictures_below(folder, pictures.Skipped()))


def partners(
    file: Path, own: Collection[str], others: Sequence[str], endings: Sequence[str]
) -> list[Path]:
    """Where the file that belongs to another may be. If `images` is one of its `own` folders and
    `masks` one of the `others`, the mask of `a/images/train/x.jpg` is `a/masks/train/x.png`, or
    lies beside it. A suffix may be in capitals."""
    heads = [(head, "." + suffix) for head, _, suffix in (end.rpartition(".") for end in endings)]
    endings = [*endings, *(head + suffix.upper() for head, suffix in heads)]
    ways = [file.parent]
    for place in range(len(file.parts) - 2, -1, -1):
        if file.parts[place].lower() in own:
            before, after = file.parts[:place], file.parts[place + 1 : -1]
            ways = [*(Path(*before, folder, *after) for folder in others), file.parent]
            break
    return [way / (file.stem + ending) for way in ways for ending in endings]


def class_names(root: Path) -> list[str]:
    """The class names in a file, one per line or in ADE20K's table; none if there is no file.

    The file is in the folder itself or, as labeling tools write it, beside the labels.
    """
    for name in NAME_FILES:
        for file in (*root.glob(name), *root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")):
            lines = [line.strip() for line in read_text(file).rstrip().splitlines()]
            first = lines[0].replace(",", " ").split() if lines else []
            if first and Path(first[0]).suffix.lower() in picture_suffixes():
                continue  # a list of pictures with their classes
            pairs = enumerate(lines, 1)
            if name == "objectInfo150.txt":  # the last column, below a heading
                pairs = enumerate([line.rpartition("\t")[2] for line in lines[1:]], 2)
            return different(file, pairs)
    return []


def different(file: Path, names: Iterable[tuple[int, str]]) -> list[str]:
    """Names of classes from the lines of a file. Raises DataError, which names the line, if there
    is an empty one, as the numbers of the others would change, or one occurs twice."""
    lines: dict[str, int] = {}
    for line, name in names:
        if not name or name in lines:
            found = f"{name!r:.40} again, after line {lines[name]}" if name else "none"
            raise DataError(
                f"{file}: line {line}: expected the name of another class, found {found}: each "
                "class needs a name of its own"
            )
        lines[name] = line
    return list(lines)


def with_background(names: list[str]) -> list[str]:
    """The background, always under the same name, then the classes of objects."""
    return [BACKGROUND, *names[int(names[:1] in ([BACKGROUND], ["__background__"])) :]]


def part_of(path: Path, root: Path) -> str | None:
    """The part that a path below `root` names, train, val or test; the last such word counts."""
    words = re.findall("[a-z]+", str(path.relative_to(root)).lower())
    return next((PARTS[word] for word in reversed(words) if word in PARTS), None)


def by_parts(items: Iterable[Item], parts: Iterable[str | None]) -> tuple[list[Item], list[Item]]:
    """The items of train, and those of val, or of test if there is no val."""
    found: dict[str | None, list[Item]] = {}
    for item, part in zip(items, parts, strict=True):
        found.setdefault(part, []).append(item)
    return found.get("train", []), found.get("val") or found.get("test", [])


def split_by_folder(
    items: Sequence[Item], paths: Sequence[Path], root: Path, seed: int
) -> tuple[list[Item], list[Item]]:
    """Split items by the folders of their paths, or else hold out a fifth."""
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
    """Hold out every fifth, in an order that the seed decides."""
    order = np.random.RandomState(seed).permutation(len(items))
    chosen = np.zeros(len(items), bool)
    chosen[order[::HELD_OUT]] = True
    pairs = list(zip(items, chosen, strict=True))
    return [item for item, held in pairs if not held], [item for item, held in pairs if held]
